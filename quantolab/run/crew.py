"""The workers of a run, as the run sees them: an engine's client, and who does what.

The engine (dask.distributed) carries jobs, records and pictures, and says who is there. It is
imported only where workers are asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import (
    ArgumentError,
    Cancelled,
    JobFailed,
    QuantolabError,
    WorkersLost,
    first_line,
    whole_number,
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
_CONNECT_SECONDS = 20
_NOBODY_SECONDS = 30.0
"""For how long a run waits for a worker where there is none any more."""
DEATHS = 2
"""So many workers that die with the same job show that it is the job."""
_ADDRESS = re.compile(r"(?P<scheme>tcp|tls)://(?P<host>\[[^]]+\]|[^:/\s]+):(?P<port>\d{1,5})/?")
_ENGINE_LOGS = ("distributed", "distributed.client", "tornado.application")
_OWN_MACHINE = ("127.", "localhost", "[::1]")


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
        found = _ADDRESS.fullmatch(workers.strip())
        if found is None:
            raise ArgumentError(
                f"workers {workers!r} is neither a number of local workers nor the address of a "
                "scheduler: tcp://HOST:PORT or tls://HOST:PORT"
            )
        own = found["host"].startswith(_OWN_MACHINE)
        if found["scheme"] == "tcp" and not own and not trusted:
            raise ArgumentError(
                f"workers {workers!r} is on another machine without TLS, and who listens there or "
                "between can run anything here and there: use tls://, or say that you trust it "
                "(--trust-workers, trust_workers=True)"
            )
        workers = workers.strip()
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


@dataclass
class _Work:
    """A job that is under way, or waits to be done again."""

    order: Order
    folder: Path
    deaths: int = 0
    worker: str = ""
    future: Any = None


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
        self.token, self.worker = other.token, other.worker

    @property
    def order(self) -> Order:
        """What it was asked to do, by the name of the process that does it now."""
        return dataclasses.replace(self._order, token=self.token, encoded=None)

    def end(self) -> None:
        """End its process, if it still runs."""
        self._crew.let_go(self.worker, self.token)


@dataclass
class Crew:
    """The workers of one run. Use as a context manager.

    Stands where `Children` stand in a `Session`: it runs and holds jobs, on workers.
    """

    workers: int | str | Client
    source: Source
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
        self._opening_at: dict[str, Any] = {}
        self._refused: dict[str, str] = {}
        self._nobody_since: float | None = None
        self._numbers: dict[str, int] = {}

    # --- coming and going ---

    def __enter__(self) -> Crew:
        if isinstance(self.workers, (int, str)):  # what the engine says on its way we say ourselves
            for name in _ENGINE_LOGS:
                logging.getLogger(name).setLevel(logging.CRITICAL)
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
            try:
                self._client = Client(
                    self.workers, set_as_default=False, timeout=_CONNECT_SECONDS,
                    security=_security(self.workers),
                )  # fmt: skip
            except (OSError, TimeoutError, ValueError, RuntimeError) as error:
                raise ArgumentError(
                    f"no scheduler can be reached at {self.workers!r}: {first_line(error)}"
                ) from error
        else:
            self._client = self.workers
        self._client.subscribe_topic(self.run_id, self._on_told)
        self._look()
        for keeps in (self._keep_looking, self._keep_beating):
            threading.Thread(target=keeps, daemon=True).start()

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

    def open(self, content: ModelContent, watch: Callable[[int], None]) -> None:
        """Have every worker get ready; wait for the first.

        Raises
        ------
        ArgumentError
            If none can do the run, with why.
        """
        environment = _share(self.workers) if isinstance(self.workers, int) else {}
        source = self.source
        if not self.same_disk:
            source = dataclasses.replace(source, folder=source.folder.absolute())
        folder = self.scratch if self.same_disk else None
        self._opening = Opening(self.run_id, source, content, self.same_disk, environment, folder)
        while not self.facts or (self.same_disk and len(self.facts) < int(self.workers)):
            watch(len(self.facts))
            self.hear(None)
            if self._refused and not self.facts and not self._opening_at:
                raise ArgumentError(next(iter(self._refused.values())))

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

    def _keep_beating(self) -> None:
        while not self._over.wait(_BEAT_SECONDS) and not self._gone:
            try:
                self._client.run(at_worker.beat, self.run_id, on_error="ignore")
            except Exception:
                pass  # the next look tells why

    def check_there(self) -> None:
        """Make sure that there still is a scheduler.

        Raises
        ------
        WorkersLost
            If not.
        """
        if self._gone or (self._client is not None and self._client.status != "running"):
            where = "the workers' scheduler"
            where += f" at {self.workers}" if isinstance(self.workers, str) else ""
            raise WorkersLost(
                f"{where} is gone ({self._gone or 'the connection ended'}); what was finished is "
                "kept, and the same command with --resume (resume=True) goes on with it"
            )

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
            self._opening_at[address] = self._submit(
                at_worker.open_run, self._opening_for(address), worker=address
            )
        self._take_in()
        if self.facts or self._opening_at or self._opening is None:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = time.monotonic()
        elif time.monotonic() - self._nobody_since > _NOBODY_SECONDS and not self._refused:
            raise WorkersLost(
                "no worker is left; what was finished is kept, and the same command with --resume "
                "(resume=True) goes on with it"
            )

    def _take_in(self) -> None:
        for address, future in list(self._opening_at.items()):
            if future.status == "finished":
                self.facts[address] = future.result()
                del self._opening_at[address]
            elif future.status == "error":
                self._refused[address] = first_line(future.exception())
                del self._opening_at[address]

    def _opening_for(self, address: str) -> Opening:
        """Return what a worker is told: one of ours has an accelerator of its own."""
        assert self._opening is not None
        cards = _cards() if self.same_disk else []
        if len(cards) < 2:
            return self._opening
        card = cards[self.number(address) % len(cards)]
        environment = {**self._opening.environment, "CUDA_VISIBLE_DEVICES": card}
        return dataclasses.replace(self._opening, environment=environment)

    def number(self, address: str) -> int:
        """Return which worker it is, from 0 on, in the order of their coming."""
        return self._numbers.setdefault(address, len(self._numbers))

    def _submit(self, function: Callable[..., Any], *args: Any, worker: str) -> Any:
        return self._client.submit(
            function, *args, workers=[worker], pure=False, retries=0, priority=10
        )

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
            if work.worker not in self._there and not work.future.done():
                lost = self._lost(work)
                if lost is not None:
                    return lost
        self._give_out()
        try:
            message = self.inbox.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None
        if isinstance(message, Told):
            return message if message.token in self.work else None
        return self._ended(message)

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
            work.future = self._submit(at_worker.do, work.order, worker=address)
            token, future = work.order.token, work.future
            future.add_done_callback(lambda f, token=token: self.inbox.put((token, f)))

    def _may(self, work: _Work, address: str) -> bool:
        """Whether a worker may do it: where trials are timed, if it is there to be timed."""
        asked = work.order.asked
        if self.place is None or not (isinstance(asked, TrialJob) and asked.known):
            return True
        here = [a for a, facts in self.facts.items() if self.is_place(facts)]
        return address in here or not here

    def is_place(self, facts: Facts | None) -> bool:
        """Whether a worker is where trials are timed: the same host, and the same accelerator."""
        place = self.place
        return place is None or (
            facts is not None and (facts.host, facts.device) == (place.host, place.device)
        )

    def _lost(self, work: _Work) -> Ended | None:
        del self.work[work.order.token]
        work.deaths += 1
        if work.deaths >= DEATHS:
            error = JobFailed(f"{format_count(DEATHS, 'worker')} died while they did this")
            return Ended(work.order.token, None, error, (), work.worker)
        self._again.insert(0, work)
        return None

    def _ended(self, message: tuple[str, Any]) -> Ended | None:
        token, future = message
        work = self.work.get(token)
        if work is None or work.future is not future:
            return None  # it was given to another worker meanwhile
        if future.status != "finished":
            self.check_there()
            if work.worker in self._there and future.status == "error":
                del self.work[token]
                said = first_line(future.exception())
                return Ended(token, None, JobFailed(f"its worker failed: {said}"), (), work.worker)
            return self._lost(work)
        delivered: Delivered = future.result()
        del self.work[token]
        self._keep(work, delivered)
        return Ended(token, delivered.found, delivered.error, delivered.floor, work.worker)

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
        future = self._submit(at_worker.ask, held.order, asks, worker=held.worker)
        answered = threading.Event()
        future.add_done_callback(lambda f: answered.set())
        while not answered.wait(0.005 if future.done() else _POLL_SECONDS):
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")
            self.check_there()
            if held.worker not in self._there:
                break
        if future.status != "finished":
            raise WorkersLost(f"the worker at {held.worker} is gone")
        answer = future.result()
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
