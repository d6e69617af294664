"""What a worker of the engine does: the same jobs in the same child processes as in one place.

Called by the engine in the worker's own process, which imports no torch. What a run has opened
there ends with the run, or when nobody has asked after it for a while.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, Cancelled, ModelNotFoundError, QuantolabError
from ..files.digests import file_digest
from ..files.whole import scratch_folder
from ..hub.names import HubName
from ..models.source import Source, find_model
from ..plain_values import to_dict
from ..processes.children import Children, Held
from ..processes.jobs import LOG, Event, JobKind
from ..records import Conditions, ModelContent, PictureQuality
from .identity import ContentWatch, other_content
from .jobs import IMAGES, EncodeJob, Generated, Generation, LookJob, PlanJob, TrialFound, TrialJob
from .kinds import LOOK
from .preloads import preload_of

LEASE_SECONDS = 60.0
"""After how long without a word from the run everything of it ends."""


@dataclass(frozen=True)
class Opening:
    """What a worker is told of a run before its first job."""

    run: str
    source: Source
    content: ModelContent
    same_disk: bool
    """Whether the model's folder is the very one of the run."""
    device: str
    """As it was asked for."""
    environment: dict[str, str]
    """Of the children, over the worker's own."""
    folder: Path | None = None
    """Where jobs' files go for a while; by default where such things go on its system."""
    lora: tuple[Path, str] | None = None
    """File of the workload's LoRA, and its digest."""


@dataclass(frozen=True)
class Facts:
    """Where a worker is."""

    host: str
    cards: str
    """Which accelerators it sees; empty where the system doesn't restrict them."""
    device: str
    """What the run's device is there, ``auto`` resolved."""
    conditions: Conditions


@dataclass(frozen=True)
class Order:
    """A job on its way to a worker."""

    run: str
    token: str
    """By which its events and its process are named."""
    kind: JobKind[Any, Any]
    asked: PlanJob | EncodeJob | TrialJob
    stall_seconds: float
    encoded: bytes | None = None
    """The encoded prompts, for a trial."""
    floor: tuple[int, ...] = ()
    """Pictures to make once more with reordered sums."""
    held: bool = False
    """Whether its process stays alive to be asked more."""


@dataclass(frozen=True)
class Delivered:
    """What came of it."""

    found: Any = None
    error: QuantolabError | None = None
    log: str = ""
    """The end of what the process printed, if it failed."""
    files: dict[str, bytes] = field(default_factory=dict)
    floor: tuple[PictureQuality, ...] = ()


@dataclass
class _Place:
    source: Source
    children: Children
    folder: Path
    stack: ExitStack
    """Takes the folder away."""
    cancel: threading.Event
    heard: float
    held: dict[str, Held[TrialFound]] = field(default_factory=dict)


_PLACES: dict[str, _Place] = {}
_LOCK = threading.Lock()
_LOG_BYTES = 4000


def open_run(opening: Opening) -> Facts:
    """Get ready for a run's jobs, once it is sure that the model is the same.

    Raises
    ------
    ArgumentError
        If the model isn't there or holds something else, or there is no such device.
    """
    try:
        return _opened(opening)
    except QuantolabError as error:
        end_run(opening.run)
        raise ArgumentError(
            f"the worker on {socket.gethostname()} takes no part: {error}"
        ) from None


def _opened(opening: Opening) -> Facts:
    with _LOCK:
        known = opening.run in _PLACES
    if not known:
        source = opening.source if opening.same_disk else _own_source(opening)
        if opening.lora is not None and not opening.same_disk:
            _check_lora(*opening.lora)
        children = Children(preload_of(source), environment=_environment(opening))
        children.__enter__()
        stack = ExitStack()
        if opening.folder is None:
            folder = stack.enter_context(scratch_folder("worker"))
        else:
            folder = opening.folder / f"worker-{os.getpid()}"
            folder.mkdir(parents=True)
        place = _Place(source, children, folder, stack, threading.Event(), time.monotonic())
        with _LOCK:
            _PLACES[opening.run] = place
        threading.Thread(target=_look_after, args=(opening.run, place), daemon=True).start()
    place = _place(opening.run)
    seen = place.children.run(
        LOOK, LookJob(opening.device), folder=place.folder / "look", cancel=place.cancel
    )
    cards = {**os.environ, **opening.environment}.get("CUDA_VISIBLE_DEVICES", "")
    return Facts(socket.gethostname(), cards, seen.device, seen.conditions)


_OF_THE_ENGINE = ("MALLOC_TRIM_THRESHOLD_",)
"""What the engine sets for its own process, and would make every allocation of torch slow."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _environment(opening: Opening) -> dict[str, str]:
    """Return the variables of children: as many threads as the engine gives this worker."""
    from distributed import get_worker

    for name in _OF_THE_ENGINE:
        os.environ.pop(name, None)
    threads = str(max(1, get_worker().state.nthreads))
    return {**dict.fromkeys(THREADS, threads), **opening.environment}


def _own_source(opening: Opening) -> Source:
    """Return the model as this worker has it; what differs from the run's is refused."""
    asked, variant = opening.source, opening.source.asked_variant
    if asked.hub is not None and asked.revision is not None:
        name = HubName(asked.hub.repo, asked.revision, asked.hub.path)
        return find_model(str(name), variant=variant)
    source = find_model(asked.model if asked.model == "demo" else asked.folder, variant=variant)
    watch = ContentWatch(source)
    watch.begin()
    while not watch.wait(1.0):
        pass
    said = other_content(opening.content, watch.content)
    if said:
        raise ArgumentError(f"the model {asked.model!r} isn't the same there: {said}")
    return source


def _check_lora(path: Path, digest: str) -> None:
    if not path.is_file():
        raise ModelNotFoundError(f"there is no file {str(path)!r}, the LoRA, there")
    if file_digest(path) != digest:
        raise ArgumentError(f"the LoRA {str(path)!r} isn't the same there")


def _look_after(run: str, place: _Place) -> None:
    while not place.cancel.wait(1.0):
        if time.monotonic() - place.heard > LEASE_SECONDS:
            end_run(run)


def beat(run: str) -> None:
    """Hear that a run goes on."""
    place = _PLACES.get(run)
    if place is not None:
        place.heard = time.monotonic()


def end_run(run: str) -> None:
    """End everything of a run here; what it still does is killed.

    Who still waits for a job of it hears that it was `Cancelled`.
    """
    with _LOCK:
        place = _PLACES.pop(run, None)
    if place is None:
        return
    place.cancel.set()

    def clear() -> None:
        for held in list(place.held.values()):
            held.end()
        place.children.__exit__()
        place.stack.close()

    threading.Thread(target=clear).start()


def _place(run: str) -> _Place:
    place = _PLACES.get(run)
    if place is None:
        raise _ended()
    place.heard = time.monotonic()
    return place


def _ended() -> Cancelled:
    return Cancelled("the run was ended")


def do(order: Order) -> Delivered:
    """Do a job in a child process, and return what it found with its files."""
    place = _PLACES.get(order.run)
    if place is None:
        return Delivered(error=_ended())
    folder = None
    try:
        folder = place.folder / order.token
        folder.mkdir(parents=True, exist_ok=True)
        return _done(place, order, folder)
    except QuantolabError as error:
        if place.cancel.is_set():  # the job's process was killed, whatever that looks like
            return Delivered(error=_ended())
        return Delivered(error=error, log=_end_of_log(folder))
    finally:
        if folder is not None and order.token not in place.held:
            shutil.rmtree(folder, ignore_errors=True)


def _done(place: _Place, order: Order, folder: Path) -> Delivered:
    asked: Any = dataclasses.replace(order.asked, source=place.source)
    prompts = folder / "prompts.safetensors"
    if isinstance(asked, EncodeJob):
        asked = dataclasses.replace(asked, path=prompts)
    elif isinstance(asked, TrialJob):
        if order.encoded is not None:
            prompts.write_bytes(order.encoded)
        asked = dataclasses.replace(
            asked, encoded=None if order.encoded is None else prompts, held=True
        )
    options: Any = {
        "folder": folder,
        "watch": _teller(order),
        "cancel": place.cancel,
        "stall_seconds": order.stall_seconds,
    }
    if not isinstance(asked, TrialJob):
        found = place.children.run(order.kind, asked, **options)
        files = {prompts.name: prompts.read_bytes()} if prompts.exists() else {}
        return Delivered(found, files=files)
    held = place.children.hold(order.kind, asked, **options)
    try:
        floor = _floor(place, order, held)
        made = sorted((folder / IMAGES).glob("*.png"))
        delivered = Delivered(held.found, files={p.name: p.read_bytes() for p in made}, floor=floor)
        if order.held:
            place.held[order.token] = held
        return delivered
    finally:
        if order.token not in place.held:
            held.end()


def _teller(order: Order) -> Any:
    from distributed import get_worker

    worker = get_worker()

    def tell(event: Event) -> None:
        if event.kind in ("stage", "file"):
            bare = dataclasses.replace(event, path=None)
            worker.log_event(order.run, {"token": order.token, "event": to_dict(bare)})

    return tell


def _floor(place: _Place, order: Order, held: Held[TrialFound]) -> tuple[PictureQuality, ...]:
    found = []
    for number in order.floor:
        try:
            answer = _asked(place, order, held, Generation(number, reordered=True))
        except Cancelled:
            raise
        except QuantolabError:
            return ()  # if its process has died, the next question says so
        if answer.quality is None:
            return ()
        found.append(answer.quality)
    return tuple(found)


def _asked(place: _Place, order: Order, held: Held[TrialFound], asks: Generation) -> Generated:
    return held.ask(asks, Generated, cancel=place.cancel, stall_seconds=order.stall_seconds)


def ask(order: Order, asks: Generation) -> Generated | QuantolabError:
    """Ask a job that is held; an error is returned, for others are the engine's own."""
    try:
        place = _place(order.run)
        held = place.held.get(order.token)
        if held is None:
            raise Cancelled("its process was ended")
        return _asked(place, order, held, asks)
    except QuantolabError as error:
        return error if order.run in _PLACES else _ended()


def let_go(run: str, token: str) -> None:
    """End a job that is held."""
    place = _PLACES.get(run)
    held = place.held.pop(token, None) if place is not None else None
    if place is not None and held is not None:
        held.end()
        shutil.rmtree(place.folder / token, ignore_errors=True)


def _end_of_log(folder: Path | None) -> str:
    try:
        return (folder / LOG).read_bytes()[-_LOG_BYTES:].decode(errors="replace") if folder else ""
    except OSError:
        return ""
