"""Child processes as their parent sees them: start, watch, end; what became of each.

Importing torch, Diffusers and Quanto takes seconds and happens once, in a server process that
forks a child for each job (see `server`). Where forking isn't safe (Windows, macOS), or an import
has begun with an accelerator, each job gets a fresh process instead. The parent itself never
imports torch.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from ..errors import Cancelled, JobFailed
from ..plain_values import from_dict, to_dict
from ..units import format_places
from .jobs import (
    LOG,
    RESULT,
    Asked,
    Event,
    Found,
    JobKind,
    Order,
    Preload,
    Question,
    read_result,
)
from .spare import Circumstances, Spare, circumstances, current_folder

Answer = TypeVar("Answer")

_POLL_SECONDS = 0.1  # how soon Ctrl-C and cancel are heard
_FORK_SECONDS = 5.0  # what a server needs at most to begin a job, which takes milliseconds
STALL_SECONDS = 1800.0
"""A job that shows no sign of life for so long is taken for hung."""
_REST_SECONDS = 5.0  # what a server needs at most to hear that the last of its jobs was ended

SPARE = Spare()
"""Where a server waits for the next `Children` of this process that `keep` theirs."""


class Children:
    """A place to run jobs, each in a process of its own. Use as a context manager.

    Several threads may `run` jobs at the same time.

    Parameters
    ----------
    preload : Preload
        What the jobs will need, imported ahead.
    fork : bool, optional
        Whether to fork children from one server; by default on Linux only.
    environment : mapping of str to str, optional
        Environment variables of the children, over those of this process.
    keep : bool
        Whether to take over a server that waits in `SPARE`, and to leave it there if all went
        well, so that who comes next needn't wait for its imports.
    """

    def __init__(
        self,
        preload: Preload = Preload(),  # noqa: B008 - frozen
        fork: bool | None = None,
        environment: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self._preload = preload
        self._fork = sys.platform == "linux" if fork is None else fork
        self._environment = dict(environment or {})
        self._keep = keep
        self._server: _Server | None = None
        self._serving = threading.Lock()
        self._left = False
        self._count = itertools.count(1)

    def __enter__(self) -> Children:
        if self._fork:
            self._live_server()  # its imports go on while the caller prepares its jobs
        return self

    def __exit__(self, *error: object) -> None:
        with self._serving:
            server, self._server, self._left = self._server, None, True
        if server is None:
            return
        if self._keep and not any(error) and server.rests():
            SPARE.put(server.had, server)
        else:
            server.close()

    def run(
        self,
        kind: JobKind[Asked, Found],
        asked: Asked,
        *,
        folder: Path,
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> Found:
        """Do one job in a process of its own and return what it found.

        Parameters
        ----------
        kind : JobKind
            Which job.
        asked : record
            What it takes.
        folder : Path
            A folder for the job's own files: ``result.json``, and ``log.txt`` with what the
            process prints.
        watch : callable
            Called with each event of the job, in this thread.
        cancel : threading.Event, optional
            Set it to end the job.
        stall_seconds : float
            Seconds without an event after which the job counts as hung.

        Raises
        ------
        QuantolabError
            What the job raised.
        JobFailed
            If the process crashed, was killed, hung or couldn't start; `JobRaised`, if it ended
            with an error that nobody raises on purpose.
        Cancelled
            If `cancel` was set.
        """
        job = self._ordered(kind, asked, folder, cancel, stall_seconds)
        try:
            code = job.follow(watch, cancel, stall_seconds).code or 0
        finally:
            job.end()
        return _found(kind, folder, code)

    def hold(
        self,
        kind: JobKind[Asked, Found],
        asked: Asked,
        *,
        folder: Path,
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> Held[Found]:
        """Do one job as `run` does, and keep its process where the job wants to be held.

        Returns
        -------
        Held
            With what the job found; somebody has to `Held.end` it.
        """
        job = self._ordered(kind, asked, folder, cancel, stall_seconds)
        try:
            event = job.follow(watch, cancel, stall_seconds, until="held")
            found = _found(kind, folder, event.code or 0)
        except BaseException:
            job.end()
            raise
        return Held(found, job, kind, folder)

    def _ordered(
        self,
        kind: JobKind[Asked, Found],
        asked: Asked,
        folder: Path,
        cancel: threading.Event | None,
        stall_seconds: float,
    ) -> _Job:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        number = f"{next(self._count)}"
        order = Order(number, kind.does, to_dict(asked), folder, current_folder())
        return self._begin(order, cancel, stall_seconds)

    def _begin(self, order: Order, cancel: threading.Event | None, stall_seconds: float) -> _Job:
        if not self._fork:
            return _begin_alone(order, self._preload, self._environment)
        server = self._live_server()
        try:
            return self._begin_at(server, order, cancel, stall_seconds)
        except JobFailed:
            if not server.gone:
                raise
        return self._begin_at(self._live_server(), order, cancel, stall_seconds)  # once more

    def _begin_at(
        self, server: _Server, order: Order, cancel: threading.Event | None, stall_seconds: float
    ) -> _Job:
        """Begin a job at a server, or alone where the server's forks would be refused a device."""
        server.wait_until_ready(cancel, stall_seconds)
        if server.forks_in_vain:
            return _begin_alone(order, self._preload, self._environment)
        return server.begin(order)

    def _live_server(self) -> _Server:
        """Return the server; one that was killed or crashed is followed by another."""
        with self._serving:
            if self._left:  # in another thread: nobody would end a new one
                raise JobFailed("the place where jobs run was closed before this one began")
            if self._server is not None and self._server.gone:
                self._server.close()
                self._server = None
            if self._server is None:
                self._server = self._another_server()
            return self._server

    def _another_server(self) -> _Server:
        wanted = circumstances(self._preload, self._environment)
        waiting = SPARE.take(wanted) if self._keep else None
        return waiting if isinstance(waiting, _Server) else _Server(wanted, self._environment)


class Held(Generic[Found]):
    """A job that has found what it was to find, and waits with all that it loaded.

    Made by `Children.hold`.
    """

    def __init__(self, found: Found, job: _Job, kind: JobKind[Any, Found], folder: Path) -> None:
        self.found = found
        self._job = job
        self._kind = kind
        self._folder = folder

    def ask(
        self,
        asks: Any,
        answer: type[Answer],
        *,
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> Answer:
        """Ask the job something and return its answer, a record of that type.

        Raises
        ------
        QuantolabError
            What the job raised; `JobFailed` if its process has ended meanwhile.
        Cancelled
            If `cancel` was set.
        """
        try:
            self._job.ask(to_dict(asks))
        except (BrokenPipeError, ValueError):
            pass  # it has ended, as its last event says
        event = self._job.follow(watch, cancel, stall_seconds, until="answer")
        if event.kind == "exited":
            _found(self._kind, self._folder, event.code or 0)  # raises what it raised
            raise JobFailed("the process ended before it was asked to")
        return from_dict(answer, event.answer)

    def end(self) -> None:
        """End its process, if it still runs."""
        self._job.end()


class _Job:
    """One running job.

    Parameters
    ----------
    ask : callable
        Sends what the job is asked, if it is held.
    own : subprocess.Popen, optional
        Its process, where no server started it.
    """

    def __init__(
        self, ask: Callable[[dict[str, Any]], None], own: subprocess.Popen[str] | None = None
    ) -> None:
        self.ask = ask
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._own = own
        self._pid = own.pid if own else None
        self._exited: Event | None = None
        self._imports = own is not None
        self.left_alone = False
        """Whether its server has ended, which would have ended what the job started."""

    def follow(
        self,
        watch: Callable[[Event], None],
        cancel: threading.Event | None,
        stall_seconds: float,
        until: str = "exited",
    ) -> Event:
        """Hand on events until the process ends or one of that kind comes; return it.

        Of a process that has ended nothing more comes: its end is returned again.
        """
        if self._exited is not None:
            return self._exited
        heard = time.monotonic()
        while True:
            _raise_if_set(cancel)
            try:
                event = self.inbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                most = max(stall_seconds, STALL_SECONDS) if self._imports else stall_seconds
                if time.monotonic() - heard > most:
                    raise JobFailed(
                        f"ended after {format_places(stall_seconds, 0)} s without a sign of life"
                    ) from None
                continue
            heard = time.monotonic()
            if event.kind == "ready":
                self._imports = False
                continue
            if event.kind == "exited":
                self._exited = event
                return event
            if event.kind == until:
                return event
            if event.kind == "started":
                self._pid = event.pid
            else:
                watch(event)

    def end(self) -> None:
        """Kill the process and all that it started, if it still runs."""
        pid = None if self._exited and not self.left_alone else self._started_pid()
        if pid is None:
            return
        try:
            if hasattr(os, "killpg"):
                os.killpg(pid, signal.SIGKILL)
            elif self._own is not None:
                self._own.kill()
        except (ProcessLookupError, PermissionError):
            pass

    def _started_pid(self) -> int | None:
        """Return the process to end, if there is one; one just asked for is waited for."""
        if self._pid is None:
            try:
                self._pid = self.inbox.get(timeout=_FORK_SECONDS).pid
            except queue.Empty:
                pass
        return self._pid


class _Server:
    """The process that imports once and forks a child for each job; several threads may ask it.

    Parameters
    ----------
    had : Circumstances
        Those of now, with what it is to import ahead.
    environment
        As for `Children`.
    """

    def __init__(self, had: Circumstances, environment: Mapping[str, str]) -> None:
        self.had = had
        self._process = _start([json.dumps(to_dict(had.preload))], environment)
        self._requests, self._told = _pipes(self._process)
        self._ready = threading.Event()
        self.forks_in_vain = False
        """Whether its children couldn't use an accelerator."""
        self._jobs: dict[str, _Job] = {}
        self._writing = threading.Lock()  # two requests must not mix
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def gone(self) -> bool:
        """Whether it has ended, which it doesn't do of itself."""
        return self._process.poll() is not None

    def begin(self, order: Order) -> _Job:
        """Have a job begun; the imports are done.

        Raises
        ------
        JobFailed
            As `Children.run`.
        """
        job = self._jobs[order.job] = _Job(lambda asks: self._write(Question(order.job, asks)))
        try:
            self._write(order)
        except (BrokenPipeError, ValueError) as error:
            raise self._failure() from error
        if not self._reader.is_alive():  # it ended this very moment
            self._tell_end()
        return job

    def _write(self, request: Order | Question) -> None:
        with self._writing:
            self._requests.write(json.dumps(to_dict(request)) + "\n")
            self._requests.flush()

    def rests(self) -> bool:
        """Return whether it waits for jobs, once those that were ended are gone."""
        end = time.monotonic() + _REST_SECONDS
        while self._jobs and time.monotonic() < end:
            time.sleep(0.01)
        return self._ready.is_set() and not self._jobs and not self.gone

    def let_go(self) -> None:
        """Let go of its pipes in a process that was forked off, or it wouldn't hear of our end."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for pipe in (self._requests, self._told):
            os.dup2(nowhere, pipe.fileno())
        os.close(nowhere)

    def close(self) -> None:
        """End it and its children."""
        try:
            self._requests.close()  # it ends its children and itself
        except BrokenPipeError:
            pass  # it was killed, and a request still lay in the buffer
        if not self._ready.is_set():  # still importing: it was asked for no job yet
            self._process.kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=10)
        if not self._reader.is_alive():  # else something that a job started still holds it
            self._told.close()

    def wait_until_ready(self, cancel: threading.Event | None, stall_seconds: float) -> None:
        """Wait for the imports: until then it may be killed, since it has no children.

        Raises
        ------
        JobFailed, Cancelled
            As `Children.run`.
        """
        # Importing libraries is no job of the user's: no limit for jobs is too short for it.
        stall_seconds = max(stall_seconds, STALL_SECONDS)
        began = time.monotonic()
        while not self._ready.wait(_POLL_SECONDS):
            _raise_if_set(cancel)
            if self.gone:
                raise self._failure()
            if time.monotonic() - began > stall_seconds:
                raise JobFailed(f"not started after {format_places(stall_seconds, 0)} s")

    def _failure(self) -> JobFailed:
        code = self._process.wait()
        return JobFailed(f"the process that starts trials has ended: {_how_it_ended(code)}")

    def _read(self) -> None:
        """Hand events to their jobs until the process ends, which takes its jobs with it."""
        for event in _events(self._told):
            if event.kind in ("ready", "alone"):
                self.forks_in_vain = event.kind == "alone"
                self._ready.set()
            elif (job := self._jobs.get(event.job)) is not None:
                job.inbox.put(event)
                if event.kind == "exited":
                    del self._jobs[event.job]
        self._process.wait()
        self._tell_end()

    def _tell_end(self) -> None:
        for job in list(self._jobs.values()):
            job.left_alone = True
            job.inbox.put(Event("exited", code=self._process.returncode))


def _begin_alone(order: Order, preload: Preload, environment: Mapping[str, str]) -> _Job:
    """Begin a job in a fresh process."""
    process = _start(["--once"], environment)
    requests, told = _pipes(process)

    def ask(asks: dict[str, Any]) -> None:
        requests.write(json.dumps(to_dict(Question(order.job, asks))) + "\n")
        requests.flush()

    job = _Job(ask, process)

    def read() -> None:
        for event in _events(told):
            job.inbox.put(event)
        told.close()

    def wait() -> None:
        _end_what_it_left(process)
        code = process.wait()
        reader.join()  # every event comes before the last
        try:
            requests.close()
        except BrokenPipeError:
            pass
        job.inbox.put(Event("exited", code=code))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    threading.Thread(target=wait, daemon=True).start()
    try:
        requests.write(f"{json.dumps(to_dict(preload))}\n{json.dumps(to_dict(order))}\n")
        requests.flush()  # and left open: it ends when this end closes, however that comes
    except (BrokenPipeError, ValueError):
        pass  # it has ended already, and the reader says so
    return job


def _found(kind: JobKind[Any, Found], folder: Path, code: int) -> Found:
    if code or not (folder / RESULT).exists():
        raise JobFailed(_how_it_ended(code, folder / LOG))
    return read_result(folder, kind)


def _end_what_it_left(process: subprocess.Popen[str]) -> None:
    """Wait for a process, and kill its group before its number can belong to another."""
    if sys.platform == "win32":
        process.wait()
        return
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(process.pid, signal.SIGKILL)
    except (ChildProcessError, ProcessLookupError, PermissionError):
        pass


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """Return both ends of a process from `_start`: what it is asked, and what it tells."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _events(told: IO[str]) -> Iterator[Event]:
    for line in told:
        try:
            yield from_dict(Event, json.loads(line))
        except ValueError:
            continue  # not ours: a library that writes to a saved descriptor


def _raise_if_set(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled")


def _start(arguments: list[str], extra: Mapping[str, str]) -> subprocess.Popen[str]:
    environment = {**os.environ, **extra, "TQDM_DISABLE": "1"}
    home = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        # -P: a torch.py in the current folder is a stranger's file, no library.
        [sys.executable, "-P", "-c", _SERVE, home, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


# The child imports this very quantolab, wherever it was imported from, and nothing else from
# there: what lies beside it, in site-packages say, may have the name of a library's module.
_SERVE = """
import importlib.util, os, sys
home = os.path.join(sys.argv.pop(1), "quantolab")
found = importlib.util.find_spec("quantolab")
there = os.path.dirname(found.origin or "") if found else ""
if not there or not os.path.samefile(there, home):
    found = importlib.util.spec_from_file_location("quantolab", os.path.join(home, "__init__.py"))
    sys.modules["quantolab"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules["quantolab"])
from quantolab.processes.server import main
main()
"""


def _how_it_ended(code: int, log: Path | None = None) -> str:
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        why = {
            "SIGSEGV": "the process crashed (segmentation fault)",
            "SIGKILL": "the process was killed (SIGKILL), by the system for lack of memory or "
            "by somebody",
            "SIGABRT": "the process aborted (SIGABRT)",
            "SIGTERM": "the process was ended (SIGTERM)",
        }.get(name, f"the process ended by {name}")
        return why
    last = _last_line(log) if log else ""
    return f"the process ended with exit status {code}" + (f": {last}" if last else "")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
