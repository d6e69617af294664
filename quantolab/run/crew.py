"""The workers of a run, as the run sees them: an engine's client, and who does what.

The engine (dask.distributed) carries jobs, records and pictures, and says who is there. It is
imported only where workers are asked for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import itertools
import logging
import os
import queue
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..devices import BEST_FIRST, check_device
from ..errors import (
    ArgumentError,
    Cancelled,
    JobFailed,
    QuantolabError,
    WorkersLost,
    first_line,
    whole_number,
    with_kind,
)
from ..files.whole import scratch_folder, write_whole
from ..models.source import Source
from ..plain_values import from_dict
from ..processes.jobs import Event, JobKind
from ..records import ModelContent
from ..units import format_count
from . import at_worker
from .at_worker import Delivered, Facts, Opening, Order
from .jobs import IMAGES, EncodeJob, Generated, Generation, TrialFound, TrialJob

if TYPE_CHECKING:
    from distributed import Client

MOST_WORKERS = 256
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 0.5
_BEAT_SECONDS = 5.0
_CONNECT_SECONDS = 10
_NOBODY_SECONDS = 30.0
"""For how long a run waits for a worker where there is none, or none where trials are timed."""
_OURS_SECONDS = 120.0
"""For how long it waits for one of ours, which a busy machine may take that long to start."""
DEATHS = 2
"""So many workers that die with the same job show that it is the job."""
_ADDRESS = re.compile(r"(?P<scheme>tcp|tls)://(?P<host>\[[^]]+\]|[^:/\s]+):(?P<port>\d{1,5})/?")
_ENGINE_LOGS = ("distributed", "distributed.client", "tornado.application", "asyncio")


def check_workers(workers: int | str | Client | None, trusted: bool) -> int | str | Client | None:
    """Return what is asked for as workers, checked as far as that needs nobody to connect.

    Raises
    ------
    ArgumentError
        If it is no number, address or client, the engine isn't installed, or an address of
        another machine has neither TLS nor the user's yes.
    """
    if workers is None:
        return None
    if isinstance(workers, str) and workers.strip().isdecimal():
        if len(workers) > 9:  # int() refuses thousands of digits
            raise ArgumentError(
                f"workers must be a whole number up to {MOST_WORKERS}, and not one of "
                f"{len(workers)} digits"
            )
        workers = int(workers)
    if isinstance(workers, int):
        whole_number("workers", workers, most=MOST_WORKERS)
    elif isinstance(workers, str):
        workers = _checked_address(workers.strip(), trusted)
    elif not all(hasattr(workers, name) for name in ("submit", "asynchronous", "status")):
        hint = "; a cluster's is its get_client()" if hasattr(workers, "scheduler_address") else ""
        raise ArgumentError(
            "workers must be a number of local workers, the address of a scheduler or a running "
            f"distributed.Client, not {type(workers).__name__}{hint}"
        )
    elif workers.asynchronous or workers.status != "running":
        how = "asynchronous" if workers.asynchronous else workers.status
        raise ArgumentError(f"workers must be a running distributed.Client, and this one is {how}")
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ArgumentError(
            "workers need dask.distributed, which isn't installed: pip install 'quantolab[workers]'"
        ) from None
    return workers


def _checked_address(asked: str, trusted: bool) -> str:
    found = _ADDRESS.fullmatch(asked)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise ArgumentError(
            f"workers {asked!r} is neither a number of local workers nor the address of a "
            "scheduler: tcp://HOST:PORT or tls://HOST:PORT"
        )
    if found["scheme"] == "tcp" and not _is_own_machine(found["host"]) and not trusted:
        raise ArgumentError(
            f"workers {asked!r} is on another machine without TLS, and who listens there or "
            "between can run anything here and there: use tls://, or say that you trust it "
            "(--trust-workers, trust_workers=True)"
        )
    return asked


def _is_own_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name, which may begin with whatever it likes


class _Call:
    """A call on a worker, and what came of it. Nobody who looks waits.

    A result that is there is still to be fetched, and of a worker that dies before that nobody
    ever would.
    """

    def __init__(self, future: Any, wake: Callable[[], None] = lambda: None) -> None:
        self._future = future
        self._wake = wake
        self.over = threading.Event()
        self.answer: Any = None
        self.error: BaseException | None = None
        # The engine calls back in one thread for all.
        future.add_done_callback(
            lambda future: threading.Thread(target=self._fetch, daemon=True).start()
        )

    def _fetch(self) -> None:
        try:
            self.answer = self._future.result()
        except BaseException as error:  # also that it was cancelled
            self.error = error
        self.over.set()
        self._wake()

    @property
    def lost(self) -> bool:
        """Whether it ended by its worker's death, and not by an error of its own."""
        from distributed import KilledWorker

        return isinstance(self.error, (KilledWorker, CancelledError, asyncio.CancelledError))


@dataclass
class _Work:
    """A job that is under way, or waits to be done again."""

    order: Order
    folder: Path
    deaths: int = 0
    worker: str = ""
    call: _Call | None = None


@dataclass(frozen=True)
class Ended:
    """A job that came to an end."""

    token: str
    found: Any
    error: QuantolabError | None
    floor: tuple[Any, ...]
    worker: str


@dataclass(frozen=True)
class Told:
    """What a job tells while it works; of which kind, `Event` says."""

    token: str
    event: Event


@dataclass
class RemoteHeld:
    """A job that waits on a worker with all that it loaded, as `Held` does here.

    Where its worker dies, it is loaded again on another, once.
    """

    found: TrialFound
    token: str
    worker: str
    _crew: Crew
    _order: Order
    _again: bool = False

    def ask(
        self,
        asks: Generation,
        answer: type[Generated],
        *,
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float = 0.0,
    ) -> Generated:
        """Ask it; see `Held.ask`."""
        try:
            found = self._crew.ask(self, asks, cancel)
        except WorkersLost:
            self._crew.check_there()
            if self._again:
                raise JobFailed("its worker died, and so did the one that took over") from None
            self._load_again(cancel)
            found = self._crew.ask(self, asks, cancel)
        watch(Event("picture"))
        return found

    def _load_again(self, cancel: threading.Event | None) -> None:
        self._again = True
        known = dataclasses.replace(self._order.asked, known=True, numbers=())
        other = self._crew.hold(
            self._order.kind,
            known,
            folder=self._crew.scratch / self.token,
            cancel=cancel,
            stall_seconds=self._order.stall_seconds,
        )
        self.found, self.token, self.worker = other.found, other.token, other.worker

    @property
    def order(self) -> Order:
        """What it was asked to do, by the name of the process that does it now."""
        return dataclasses.replace(self._order, token=self.token, encoded=None)

    def end(self) -> None:
        """End its process, if it still runs."""
        self._crew.let_go(self.worker, self.token)


class _Silence:
    """What the engine logs isn't shown in the block, nor for some seconds afterwards.

    Its loop, a thread of its own, closes connections after a crew has left, and tells of each.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._levels: dict[str, int] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._blocks += 1
            for name in _ENGINE_LOGS:
                self._levels.setdefault(name, logging.getLogger(name).level)
                logging.getLogger(name).setLevel(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._blocks -= 1
        timer = threading.Timer(_SILENT_SECONDS, self._restore)
        timer.daemon = True
        timer.start()

    def _restore(self) -> None:
        with self._lock:
            if self._blocks:
                return
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)
            self._levels.clear()


_SILENT_SECONDS = 10.0
_SILENCE = _Silence()


@dataclass
class Crew:
    """The workers of one run. Use as a context manager.

    Stands where `Children` stand in a `Session`: it runs and holds jobs, on workers.
    """

    workers: int | str | Client
    source: Source
    device: str = "auto"
    """As it was asked for; once workers are ready, what that is."""
    lora: tuple[Path, str] | None = None
    """File of the workload's LoRA, and its digest."""
    run_id: str = field(default_factory=lambda: f"quantolab-{uuid.uuid4().hex[:12]}")
    facts: dict[str, Facts] = field(default_factory=dict)
    """Of those that are ready, by address."""
    place: Facts | None = None
    """Where trials are timed, once that is known."""
    encoded: bytes | None = None

    def __post_init__(self) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.work: dict[str, _Work] = {}
        self._again: list[_Work] = []
        self._count = itertools.count(1)
        self._there: set[str] = set()
        self._gone = ""
        self._over = threading.Event()
        self._stack = ExitStack()
        self._cluster: Any = None
        self._client: Any = None
        self._opening: Opening | None = None
        self._opening_at: dict[str, _Call] = {}
        self._refused: dict[str, str] = {}
        self._begun = False
        self._somebody_at = self._place_at = time.monotonic()
        self._numbers: dict[str, int] = {}
        self._beaten: set[str] = set()
        self._card: dict[str, str] = {}

    # --- coming and going ---

    def __enter__(self) -> Crew:
        if isinstance(self.workers, (int, str)):  # what the engine says on its way we say ourselves
            self._stack.enter_context(_SILENCE)
        self.scratch = self._stack.enter_context(scratch_folder("crew"))
        try:
            self._connect()
        except BaseException:
            self._leave(hastily=True)
            raise
        return self

    def _connect(self) -> None:
        from distributed import Client

        if isinstance(self.workers, int):
            from . import own_cluster

            self._cluster = own_cluster.begin(self.workers, self.scratch / "engine")
            self._client = Client(self._cluster, set_as_default=False)
        elif isinstance(self.workers, str):
            security = _security(self.workers)
            try:
                _knock(self.workers, security)
                self._client = Client(
                    self.workers, set_as_default=False, timeout=_CONNECT_SECONDS, security=security
                )
            except OSError as error:
                why = error.strerror or first_line(error).rpartition(": ")[2]
                raise ArgumentError(
                    f"no scheduler can be reached at {self.workers!r}: {why}"
                ) from error
            except Exception as error:
                raise ArgumentError(
                    f"what answers at {self.workers!r} is no dask scheduler: {with_kind(error)}"
                ) from error
        else:
            self._client = self.workers
        self._client.subscribe_topic(self.run_id, self._on_told)
        self._look()
        threading.Thread(target=self._keep_looking, daemon=True).start()
        self._somebody_at = time.monotonic()

    @property
    def same_disk(self) -> bool:
        """Whether the workers are ours, on this machine."""
        return isinstance(self.workers, int)

    def __exit__(self, *error: object) -> None:
        self._leave(hastily=any(error))

    def _leave(self, hastily: bool) -> None:
        self._over.set()
        client, cluster = self._client, self._cluster
        if cluster is not None:
            from . import own_cluster

            own_cluster.kill(cluster)
        elif client is not None and not self._gone:
            self._end_run_elsewhere(client)
        closing = threading.Thread(target=self._close, args=(client, cluster), daemon=True)
        closing.start()
        closing.join(timeout=0.5 if hastily else 10)
        self._stack.close()

    def _end_run_elsewhere(self, client: Any) -> None:
        def end() -> None:
            try:
                client.run(at_worker.end_run, self.run_id, on_error="ignore")
            except Exception:
                pass  # without a word from us they end it by themselves

        telling = threading.Thread(target=end, daemon=True)
        telling.start()
        telling.join(timeout=0.7)

    def _close(self, client: Any, cluster: Any) -> None:
        try:
            if client is not None and client is not self.workers:
                client.close(timeout=2)
            elif client is not None:
                client.unsubscribe_topic(self.run_id)
            if cluster is not None:
                cluster.close(timeout=5)
        except Exception:
            pass  # whatever it was connected to is gone

    # --- who is there ---

    def open(
        self, content: ModelContent, watch: Callable[[int], None], cancel: threading.Event | None
    ) -> None:
        """Have every worker get ready; wait until enough are to begin, and `device` is known.

        Raises
        ------
        ArgumentError
            If there is none, or none can do the run, with why.
        Cancelled
            If that was asked for.
        """
        environment = _share(self.workers) if isinstance(self.workers, int) else {}
        source = self.source
        if not self.same_disk:
            source = dataclasses.replace(source, folder=source.folder.absolute())
        folder = self.scratch if self.same_disk else None
        self._opening = Opening(
            self.run_id,
            source,
            content,
            self.same_disk,
            self.device,
            environment,
            folder,
            self.lora,
        )
        while not self._enough():
            watch(len(self.facts))
            self.hear(cancel)
            if self._refused and not self.facts and not self._opening_at:
                raise ArgumentError(self.refusals[0])
        if self.device == "auto":
            kinds = {facts.device for facts in self.facts.values()}
            self.device = min(kinds, key=BEST_FIRST.index)
            self._strike_others()
        self._begun = True

    def _enough(self) -> bool:
        """Whether the run can begin: with all of ours, with the first of another's scheduler.

        Where the device is still to be chosen, all that are there have to say which they have.
        """
        if self.same_disk:
            return len(self.facts) + len(self._refused) >= int(self.workers) and bool(self.facts)
        return bool(self.facts) and (self.device != "auto" or not self._opening_at)

    def _strike_others(self) -> None:
        """Let those take no part that have another kind of device than the run's."""
        kind = check_device(self.device)
        for address, facts in list(self.facts.items()):
            if kind not in ("auto", check_device(facts.device)):
                del self.facts[address]
                self._refused[address] = (
                    f"the worker on {facts.host} takes no part: it has {facts.device} alone, and "
                    f"the run goes on {self.device}"
                )

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why workers that are, or were, there take no part."""
        return tuple(dict.fromkeys(self._refused.values()))

    def _look(self) -> None:
        """Ask the scheduler who is there."""
        try:
            self._there = set(self._client.nthreads())
        except Exception as error:
            if not self._over.is_set():
                self._gone = first_line(error) or "it doesn't answer"

    def _keep_looking(self) -> None:
        while not self._over.wait(_LOOK_SECONDS) and not self._gone:
            if self._client.status != "running":
                self._gone = "the connection ended"
                return
            self._look()

    def _keep_beating(self, address: str) -> None:
        """Let a worker hear of the run; each by itself, for one that hangs answers nobody."""
        while address in self._there and not self._gone and not self._over.wait(_BEAT_SECONDS):
            try:
                self._client.run(at_worker.beat, self.run_id, workers=[address], on_error="ignore")
            except Exception:
                pass  # the next look tells why
        self._beaten.discard(address)

    def check_there(self) -> None:
        """Make sure that there still is a scheduler.

        Raises
        ------
        WorkersLost
            If not.
        """
        if self._gone or (self._client is not None and self._client.status != "running"):
            raise WorkersLost(
                f"{self._scheduler} is gone ({self._gone or 'the connection ended'}); {_RESUME}"
            )

    @property
    def _scheduler(self) -> str:
        at = f" at {self.workers}" if isinstance(self.workers, str) else ""
        return f"the workers' scheduler{at}"

    def _muster(self) -> None:
        """Have newcomers get ready, and strike off those that are gone."""
        there = self._there
        for address in [a for a in self.facts if a not in there]:
            del self.facts[address]
        for address in [a for a in self._opening_at if a not in there]:
            del self._opening_at[address]
        for address in there - self.facts.keys() - self._opening_at.keys():
            if address in self._refused or self._opening is None:
                continue
            self._opening_at[address] = self._call(eval, _VERSION, worker=address)
        self._take_in()
        now = time.monotonic()
        if any(self.is_place(facts) for facts in self.facts.values()):
            self._place_at = now
        if self.facts or self._opening_at or self._opening is None:
            self._somebody_at = now
        elif now - self._somebody_at > (_OURS_SECONDS if self.same_disk else _NOBODY_SECONDS):
            if not self._begun:
                raise ArgumentError(f"{self._scheduler} has no worker: start some first")
            why = f" ({self.refusals[0]})" if self._refused else ""
            raise WorkersLost(f"no worker is left{why}; {_RESUME}")

    def _take_in(self) -> None:
        for address, call in list(self._opening_at.items()):
            if not call.over.is_set():
                continue
            del self._opening_at[address]
            if call.lost:
                continue  # the next look tells whether it is gone
            if call.error is not None:
                self._refused[address] = _refusal(address, call.error)
            elif isinstance(call.answer, Facts):
                self.facts[address] = call.answer
                self._strike_others()
            elif call.answer == __version__:
                self._open_at(address)
            else:
                self._refused[address] = (
                    f"the worker at {address} takes no part: it has quantolab {call.answer}, and "
                    f"this is {__version__}"
                )

    def _open_at(self, address: str) -> None:
        self._opening_at[address] = self._call(
            at_worker.open_run, self._opening_for(address), worker=address
        )
        if address not in self._beaten:
            self._beaten.add(address)
            threading.Thread(target=self._keep_beating, args=(address,), daemon=True).start()

    def _opening_for(self, address: str) -> Opening:
        """Return what a worker is told: one of ours has an accelerator of its own."""
        assert self._opening is not None
        cards = _cards() if self.same_disk else []
        if len(cards) < 2:
            return self._opening
        self._card = {a: card for a, card in self._card.items() if a in self._there}
        card = self._card[address] = least_taken(cards, self._card.values())
        environment = {**self._opening.environment, "CUDA_VISIBLE_DEVICES": card}
        return dataclasses.replace(self._opening, environment=environment)

    def number(self, address: str) -> int:
        """Return which worker it is, from 0 on, in the order of their coming."""
        return self._numbers.setdefault(address, len(self._numbers))

    def _submit(self, function: Callable[..., Any], *args: Any, worker: str) -> Any:
        return self._client.submit(
            function, *args, workers=[worker], pure=False, retries=0, priority=10
        )

    def _call(self, function: Callable[..., Any], *args: Any, worker: str) -> _Call:
        future = self._submit(function, *args, worker=worker)
        return _Call(future, wake=lambda: self.inbox.put(None))

    # --- work ---

    def begin(self, order: Order, folder: Path) -> None:
        """Put a job on the list of what is to be done; `hear` tells what becomes of it."""
        self._again.append(_Work(order, folder))

    def order(
        self, kind: JobKind[Any, Any], asked: Any, stall_seconds: float, **more: Any
    ) -> Order:
        """Return an order of this run."""
        encoded = None
        if isinstance(asked, TrialJob) and asked.encoded is not None:
            if self.encoded is None:
                self.encoded = asked.encoded.read_bytes()
            encoded = self.encoded
        token = f"job-{next(self._count)}"
        return Order(self.run_id, token, kind, asked, stall_seconds, encoded, **more)

    @property
    def busy(self) -> dict[str, str]:
        """Tokens of what is done now, by the worker's address."""
        return {work.worker: token for token, work in self.work.items()}

    def drop(self, tokens: set[str]) -> None:
        """Take jobs off the list, as far as they haven't begun."""
        self._again = [w for w in self._again if w.order.token not in tokens]

    def hear(self, cancel: threading.Event | None) -> Told | Ended | None:
        """Return what happens next, None if nothing has for a moment; gives work to the idle.

        Raises
        ------
        WorkersLost
            If the scheduler or all workers are gone.
        Cancelled
            If that was asked for.
        """
        if cancel is not None and cancel.is_set():
            raise Cancelled("cancelled")
        self.check_there()
        self._muster()
        for work in list(self.work.values()):
            over = work.call is not None and work.call.over.is_set()
            if over or work.worker not in self._there:
                ended = self._ended(work) if over else self._lost(work)
                if ended is not None:
                    self._give_out()  # judging what came takes its time, and nobody waits for it
                    return ended
        self._give_out()
        try:
            told = self.inbox.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None
        return told if told is not None and told.token in self.work else None

    def _give_out(self) -> None:
        busy = {work.worker for work in self.work.values()}
        for address in sorted(self.facts, key=self.number):
            if address in busy or not self._again:
                continue
            wanted = (w for w in self._again if self._may(w, address))
            work = next(wanted, None)
            if work is None:
                continue
            self._again.remove(work)
            work.worker = address
            self.work[work.order.token] = work
            work.call = self._call(at_worker.do, work.order, worker=address)

    def _may(self, work: _Work, address: str) -> bool:
        """Whether a worker may do it: where trials are timed, if it is there to be timed.

        Where nobody is there any more, somebody may come back for a while; then another does.
        """
        asked = work.order.asked
        if self.place is None or not (isinstance(asked, TrialJob) and asked.known):
            return True
        deserted = time.monotonic() - self._place_at > _NOBODY_SECONDS
        return deserted or self.is_place(self.facts[address])

    def is_place(self, facts: Facts | None) -> bool:
        """Whether a worker is where trials are timed: host and accelerator, versions, threads."""
        return self.place is None or facts == self.place

    def _lost(self, work: _Work) -> Ended | None:
        del self.work[work.order.token]
        work.deaths += 1
        if work.deaths >= DEATHS:
            error = JobFailed(f"{format_count(DEATHS, 'worker')} were lost while they did this")
            return Ended(work.order.token, None, error, (), work.worker)
        self._again.insert(0, work)
        return None

    def _ended(self, work: _Work) -> Ended | None:
        token, call = work.order.token, work.call
        assert call is not None
        if call.error is not None:
            self.check_there()
            if call.lost or work.worker not in self._there:
                return self._lost(work)
            del self.work[token]
            said = JobFailed(f"its worker failed: {with_kind(call.error)}")
            return Ended(token, None, said, (), work.worker)
        delivered: Delivered = call.answer
        if isinstance(delivered.error, Cancelled):
            self._forgot(work.worker)
            return self._lost(work)
        del self.work[token]
        self._keep(work, delivered)
        return Ended(token, delivered.found, delivered.error, delivered.floor, work.worker)

    def _forgot(self, worker: str) -> None:
        """Have a worker get ready anew that heard nothing of us for too long, and dropped the run.

        So it is after this machine slept.
        """
        self.facts.pop(worker, None)

    def _keep(self, work: _Work, delivered: Delivered) -> None:
        asked, folder = work.order.asked, work.folder
        folder.mkdir(parents=True, exist_ok=True)
        if delivered.log:
            write_whole(folder / "log.txt", delivered.log)
        if isinstance(asked, EncodeJob):
            for content in delivered.files.values():
                write_whole(asked.path, content)
            return
        (folder / IMAGES).mkdir(exist_ok=True)
        for name, content in delivered.files.items():
            (folder / IMAGES / Path(name).name).write_bytes(content)

    def held(self, ended: Ended, order: Order) -> RemoteHeld:
        """Return the process that a job left waiting."""
        return RemoteHeld(ended.found, ended.token, ended.worker, self, order)

    # --- as `Children` ---

    def run(
        self,
        kind: JobKind[Any, Any],
        asked: Any,
        *,
        folder: Path,
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float,
    ) -> Any:
        """Do one job on some worker; see `Children.run`."""
        return self._alone(self.order(kind, asked, stall_seconds), folder, watch, cancel).found

    def hold(
        self,
        kind: JobKind[Any, Any],
        asked: Any,
        *,
        folder: Path,
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float,
    ) -> RemoteHeld:
        """Do one job where trials are timed, and keep its process; see `Children.hold`."""
        order = self.order(kind, asked, stall_seconds, held=True)
        return self.held(self._alone(order, folder, watch, cancel), order)

    def _alone(
        self,
        order: Order,
        folder: Path,
        watch: Callable[[Event], None],
        cancel: threading.Event | None,
    ) -> Ended:
        self.begin(order, folder)
        while True:
            heard = self.hear(cancel)
            if isinstance(heard, Told):
                watch(heard.event)
            elif heard is not None:
                if heard.error is not None:
                    raise heard.error
                return heard

    def ask(self, held: RemoteHeld, asks: Generation, cancel: threading.Event | None) -> Generated:
        """Ask a job that is held; `WorkersLost` if its worker is."""
        call = _Call(self._submit(at_worker.ask, held.order, asks, worker=held.worker))
        while not call.over.wait(_POLL_SECONDS):
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")
            self.check_there()
            if held.worker not in self._there:
                break
        if call.error is not None or not call.over.is_set():
            raise WorkersLost(f"the worker at {held.worker} is gone")
        answer = call.answer
        if isinstance(answer, Cancelled):
            self._forgot(held.worker)
            raise WorkersLost(f"the worker at {held.worker} has dropped the run")
        if isinstance(answer, QuantolabError):
            raise answer
        return answer

    def let_go(self, worker: str, token: str) -> None:
        """End a job that is held."""
        if self._over.is_set() or self._gone or worker not in self._there:
            return
        try:
            from distributed import fire_and_forget

            fire_and_forget(self._submit(at_worker.let_go, self.run_id, token, worker=worker))
        except Exception:
            pass  # it ends with the run

    def _on_told(self, event: tuple[float, dict[str, Any]]) -> None:
        said = event[1]
        self.inbox.put(Told(said["token"], from_dict(Event, said["event"])))


_VERSION = "__import__('quantolab.run.at_worker').__version__"
"""What a worker is asked first: the engine ends one that gets what it can't unpickle."""
_RESUME = (
    "what was finished is kept, and the same command with --resume (resume=True) goes on with it"
)


def _refusal(address: str, error: BaseException) -> str:
    """Return why a worker takes no part."""
    if isinstance(error, QuantolabError):
        return first_line(error)
    while error.__cause__ is not None:  # the engine's own say that something failed, and not why
        error = error.__cause__
    return f"the worker at {address} takes no part: {with_kind(error)}"


def least_taken(cards: Sequence[str], taken: Iterable[str]) -> str:
    """Return the card that the fewest have; the first of several.

    >>> least_taken(["0", "1", "2"], ["0", "2"])
    '1'
    """
    count = Counter(taken)
    return min(cards, key=lambda card: count[card])


def _knock(address: str, security: Any) -> None:
    """Make sure that a scheduler answers, by one connection: a client that fails lingers.

    Where nobody listens the system says so at once, and the engine would try again for a while.
    """
    from distributed.comm import connect

    found = _ADDRESS.fullmatch(address)
    assert found is not None
    place = found["host"].strip("[]"), int(found["port"])
    socket.create_connection(place, timeout=_CONNECT_SECONDS).close()
    options = {} if security is None else security.get_connection_args("client")

    async def meet() -> None:
        comm = await connect(address, timeout=_CONNECT_SECONDS, **options)
        comm.abort()

    with ThreadPoolExecutor(1) as apart:  # a notebook has a loop in this thread
        apart.submit(asyncio.run, meet()).result()


def _security(address: str) -> Any:
    """Return the engine's own settings of TLS: files in its configuration."""
    if not address.startswith("tls://"):
        return None
    from distributed.security import Security

    security = Security()
    if not security.tls_client_cert or not security.tls_ca_file:
        raise ArgumentError(
            f"workers {address!r} need certificates: name them in the engine's configuration "
            "(DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..__TLS__CLIENT__CERT and ..__CLIENT__KEY), or "
            "pass a distributed.Client that has them"
        )
    return security


def _cards() -> list[str]:
    """Return the NVIDIA cards of this machine, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [card for card in said.split(",") if card.strip()]
    return sorted(p.name[6:] for p in Path("/dev").glob("nvidia[0-9]*"))


def _share(count: int) -> dict[str, str]:
    """Return the environment that gives a worker's children their share of the processors."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "")
    most = int(said) if said.isdecimal() and int(said) else processors
    threads = str(max(1, min(most, processors // count)))
    return dict.fromkeys(at_worker.THREADS, threads)
