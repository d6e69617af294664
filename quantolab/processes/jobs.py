"""Jobs: what a parent asks for, what its child finds and tells. Imports nothing heavy.

A job is declared once, by who asks for it, as a `JobKind`: the function that does it, named so
that the parent needn't import it, and the frozen records that it takes and gives. Nothing else
crosses the border between the processes.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_type_hints

from .. import errors
from ..errors import (
    ArgumentError,
    JobFailed,
    QuantolabError,
    first_line,
    is_out_of_memory,
    with_kind,
)
from ..files.json_objects import read_object
from ..files.whole import write_whole
from ..plain_values import from_dict, to_dict

Asked = TypeVar("Asked")
Found = TypeVar("Found")

RESULT, LOG = "result.json", "log.txt"


@dataclass(frozen=True)
class JobKind(Generic[Asked, Found]):
    """One kind of job."""

    does: str
    """``"quantolab.room.module:function"``; the function is called as ``function(asked, desk)``."""
    asked: type[Asked]
    """Record that it takes."""
    found: type[Found]
    """Record that it returns."""


@dataclass(frozen=True)
class Preload:
    """What jobs will need, imported once for all of them."""

    classes: tuple[tuple[str, str], ...] = ()
    """(library, class name); what isn't there is left to the job that needs it."""
    modules: tuple[str, ...] = ()
    """Modules of ours; importing them starts no thread and touches no accelerator."""
    without_cuda: tuple[str, ...] = ()
    """Modules whose import initializes CUDA where there is one: a forked child couldn't use it
    then, so there each job imports them by itself."""


@dataclass(frozen=True)
class Order:
    """A job on its way to its process."""

    job: str
    """Its number, by which events name it."""
    does: str
    asked: dict[str, Any]
    folder: Path
    """For the job's own files."""
    current: Path | None = None
    """The current folder of who orders it; None if that was removed."""


@dataclass(frozen=True)
class Event:
    """What a child, or the server that starts children, tells while it works."""

    kind: Literal[
        "ready", "alone", "started", "exited", "stage", "step", "picture", "file", "held", "answer"
    ]
    """``alone`` comes in place of ``ready`` where forks couldn't use an accelerator."""
    job: str = ""
    stage: str = ""
    """What begins now."""
    pid: int | None = None
    code: int | None = None
    """Exit code of a process that has ended."""
    done: int | None = None
    total: int | None = None
    """How far the stage is, where that is counted."""
    path: Path | None = None
    """A file that is there from now on, whole."""
    answer: dict[str, Any] | None = None
    """To a question that a job which is held was asked."""


@dataclass(frozen=True)
class Question:
    """What a job that is held is asked, on its way to its process."""

    job: str
    asks: dict[str, Any]


class Desk:
    """What a job's function works with: a folder of its own, and somebody to tell.

    Parameters
    ----------
    folder : Path
        For the job's own files.
    tell : callable
        Takes each `Event`.
    job : str
        The job's number.
    questions : iterable of str
        Lines of JSON that somebody sends a job that is held, until it is to end.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[Event], None] = lambda event: None,
        job: str = "",
        questions: Iterable[str] = (),
    ) -> None:
        self.folder = folder
        self._tell = tell
        self._job = job
        self._questions = questions

    def hold(self, found: Any, answer: Callable[[Asked], Any], asked: type[Asked]) -> None:
        """Hand in what was found, and stay with all that was loaded to answer questions.

        Returns once nobody will ask any more.

        Parameters
        ----------
        found : record
            What the job returns.
        answer : callable
            Takes a record and returns one, short enough for a line.
        asked : type
            Of the record that it takes.
        """
        _hand_in(self.folder, _Result(value=to_dict(found)))
        self._tell(Event("held", self._job))
        for line in self._questions:
            reply = to_dict(answer(from_dict(asked, json.loads(line))))
            self._tell(Event("answer", self._job, answer=reply))

    def stage(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Tell what begins now, or how far it is."""
        self._tell(Event("stage", self._job, stage=name, done=done, total=total))

    def step(self) -> None:
        """Tell that it goes on: a sign of life."""
        self._tell(Event("step", self._job))

    @contextmanager
    def signs_of_life(self, seconds: float = 1.0) -> Iterator[None]:
        """Tell that it goes on for as long as the block uses the processor or reads files.

        For what calls nobody back: loading weights, encoding prompts. A process that waits for
        what never comes uses neither, and tells nothing.
        """
        over = threading.Event()

        def beat() -> None:
            before = _work_done()
            while not over.wait(seconds):
                now = _work_done()
                if now[0] - before[0] > _BUSY * seconds or now[1] > before[1]:
                    self.step()
                before = now

        thread = threading.Thread(target=beat, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def picture(self) -> None:
        """Tell that one of the things that are counted is done."""
        self._tell(Event("picture", self._job))

    def file(self, path: Path, number: int) -> None:
        """Tell that a file is there, whole, and which of several it is."""
        self._tell(Event("file", self._job, done=number, path=path))


_BUSY = 0.05  # share of a processor that counts as work


def _work_done() -> tuple[float, int]:
    """Return the seconds of processor time and the bytes read from disks, of this process."""
    import psutil

    read = 0
    try:
        read = psutil.Process().io_counters().read_bytes
    except (AttributeError, psutil.Error):
        pass  # not on macOS; Windows counts otherwise
    return time.process_time(), read


@dataclass(frozen=True)
class _Error:
    kind: str
    """Name of a class in `quantolab.errors`."""
    message: str


@dataclass(frozen=True)
class _Result:
    """What a process leaves when its job has ended: one of the two."""

    value: dict[str, Any] | None = None
    error: _Error | None = None


# --- in the child ---------------------------------------------------------------------------


def run_job(order: Order, tell: Callable[[Event], None], questions: Iterable[str] = ()) -> None:
    """Do a job and write its result, whole or not at all.

    Errors that we raise on purpose become part of the result, and so does any other, with a
    traceback in the job's log.
    """
    try:
        function, asked = find_job(order.does)
        desk = Desk(order.folder, tell, order.job, questions)
        result = _Result(value=to_dict(function(from_dict(asked, order.asked), desk)))
    except QuantolabError as error:
        result = _Result(error=_Error(type(error).__name__, str(error)))
    except Exception as error:
        traceback.print_exc()  # into the job's log
        result = _Result(error=_said(error))
    _hand_in(order.folder, result)


def _hand_in(folder: Path, result: _Result) -> None:
    write_whole(folder / RESULT, json.dumps(to_dict(result)))


def find_job(does: str) -> tuple[Callable[[Any, Desk], Any], type[Any]]:
    """Return the function that a job's name means, and the record that it takes.

    Raises
    ------
    ArgumentError
        If it is none of ours.
    """
    module, colon, name = does.partition(":")
    home = __name__.partition(".")[0]
    if not colon or not module.startswith(f"{home}.") or name.startswith("_"):
        raise ArgumentError(f"job {does!r} is not known; allowed: {home}.room.module:function")
    function = getattr(importlib.import_module(module), name)
    return function, get_type_hints(function)["asked"]


def _said(error: Exception) -> _Error:
    if is_out_of_memory(error):
        return _Error("JobOutOfMemory", f"out of memory: {first_line(str(error))}".rstrip(": "))
    return _Error("JobRaised", with_kind(error))


# --- in the parent --------------------------------------------------------------------------


def read_result(folder: Path, kind: JobKind[Asked, Found]) -> Found:
    """Return what a job found.

    Raises
    ------
    QuantolabError
        What the job raised.
    JobRaised
        If it ended with an error that nobody raises on purpose, or with a result of another kind.
    """
    try:
        result = from_dict(_Result, read_object(folder / RESULT))
        if result.error is None:
            return from_dict(kind.found, result.value)
    except ValueError as error:
        raise errors.JobRaised(f"its result can't be read: {error}") from error
    raise getattr(errors, result.error.kind, JobFailed)(result.error.message)
