"""What every kind of run shares: its children, how far it is, and the jobs that come first."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import JobOutOfMemory
from ..files.whole import scratch_folder
from ..planning.needs import Needs
from ..processes.children import Answer, Children, Held
from ..processes.jobs import Asked, Event, Found, JobKind
from ..recipes import Recipe
from ..records import ModelContent, Trial
from .asked import Request
from .jobs import MAKING, EncodeJob, PlanJob, Planned, RecipePlan, TrialJob
from .kinds import ENCODE, PLAN
from .preloads import preload_of
from .ways import RESIDENT, Way, check_offload, chosen_ways, milder, way_words, with_room

if TYPE_CHECKING:
    from .crew import Crew, RemoteHeld


@dataclass(frozen=True)
class MadePicture:
    """A picture of a trial that is still under way."""

    place: tuple[str, str, int]
    """Label, prompt and seed: its key in `Comparison.images`."""
    path: Path
    """Where it lies for the moment: to be read within the call that tells of it."""


@dataclass(frozen=True)
class Progress:
    """One event of a comparison, for whoever watches."""

    stage: str
    """``starting``, ``planning``, ``encoding prompts``, ``loading``, ``making the pictures``,
    ``timing``, ``finished``."""
    label: str | None
    """Label of the trial that is running; None outside trials."""
    done: int
    """Pictures made so far, timed ones included."""
    total: int
    """Pictures that the whole comparison makes."""
    elapsed_seconds: float
    eta_seconds: float | None
    """Seconds to go, once there is something to judge by."""
    trial: Trial | None = None
    """The trial that has just ended, if one has."""
    round: tuple[int, int] | None = None
    """Which round of how many it is while trials are timed."""
    picture: MadePicture | None = None
    """The picture that has just been made, if one has."""
    doing: tuple[tuple[str, str], ...] = ()
    """Which worker does what, where several do something at once."""
    own_eta_seconds: float | None = None
    """Seconds until this recipe's pictures are made, while they are, as soon as there is something
    to judge by."""

    @property
    def says(self) -> str:
        """What goes on, in words: ``timing, round 3 of 10``."""
        if self.doing:
            return "; ".join(f"{worker} {what}" for worker, what in self.doing)
        if self.round is None:
            return self.stage
        return "{}, round {} of {}".format(self.stage, *self.round)


Watch = Callable[[Progress], None]


class _Pace:
    """How long a picture takes. The first doesn't count: what is paid once is in it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: float | None = None
        self.since_first = 0

    def picture(self) -> None:
        """Count one that has just been made."""
        if self._first is None:
            self._first = self._clock()
        else:
            self.since_first += 1

    def seconds_for(self, pictures: int) -> float | None:
        """Return how long so many more take; None as long as there is nothing to judge by."""
        if self._first is None or not self.since_first:
            return None
        each = (self._clock() - self._first) / self.since_first
        return max(0.0, each * pictures)


class Session:
    """Children for one request, and the tale of how far it is. Use as a context manager.

    Parameters
    ----------
    request : Request
        What is asked for. Planning puts the resolved device into it.
    total : int
        Pictures that will be made.
    watch : callable
        Called with a `Progress` at each event.
    cancel : threading.Event or None
        Ends the job in progress when set.
    stall_seconds : float
        After how long without an event a job counts as hung.
    crew : Crew or None
        Workers that do the jobs; by default child processes here.
    clock : callable
        Tells the time in seconds.
    """

    def __init__(
        self,
        request: Request,
        *,
        total: int,
        watch: Watch,
        cancel: threading.Event | None,
        stall_seconds: float,
        crew: Crew | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request = request
        self.stage = "starting"
        self.label: str | None = None
        self.done = 0
        self.total = total
        self.round: tuple[int, int] | None = None
        self._watch = watch
        self.cancel = cancel
        self.stall_seconds = stall_seconds
        self.doing: tuple[tuple[str, str], ...] = ()
        self._clock = clock
        self._started = clock()
        self._pace, self._own_pace = _Pace(clock), _Pace(clock)
        self.ways: dict[str, Way] = {}
        self.way_note: str | None = None
        """How recipes run that don't fit as they are, in one line."""
        self.dtype_note: str | None = None
        """That the compute dtype is a slow one here."""
        self.needs: dict[str, Needs | None] = {}
        self.free_bytes: int | None = None
        self._lora_bytes: dict[str, int] = {}
        self.crew = crew
        self._children: Any = crew or Children(preload_of(request.source), keep=True)

    def __enter__(self) -> Session:
        self.tell()
        self._children.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._children.__exit__(*error)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def tell(self, trial: Trial | None = None, picture: MadePicture | None = None) -> None:
        """Let the watcher know how things stand."""
        eta, own = self._pace.seconds_for(self.total - self.done), None
        if self.label and self.stage == MAKING:
            left = len(self.request.workload.pairs) - 1 - self._own_pace.since_first
            own = self._own_pace.seconds_for(left)
        self._watch(
            Progress(
                self.stage,
                self.label,
                self.done,
                self.total,
                self.elapsed,
                eta,
                trial,
                self.round,
                picture,
                self.doing,
                own,
            )
        )

    def enter_stage(self, stage: str, label: str | None = None) -> None:
        """Go on to another stage and tell it."""
        if label != self.label:
            self._own_pace = _Pace(self._clock)
        self.stage, self.label = stage, label
        self.tell()

    def job(self, kind: JobKind[Asked, Found], asked: Asked, folder: Path) -> Found:
        """Do a job in a child and return what it found, or raise what it says.

        Raises
        ------
        QuantolabError
            What the job raised, `JobFailed` if its process ended without a result, `Cancelled`
            if the user ended it.
        """
        return self._children.run(
            kind,
            asked,
            folder=folder,
            watch=self._on_event,
            cancel=self.cancel,
            stall_seconds=self.stall_seconds,
        )

    def hold(
        self, kind: JobKind[Asked, Found], asked: Asked, folder: Path
    ) -> Held[Found] | RemoteHeld:
        """Do a job as `job` does, and keep its process with all that it loaded."""
        return self._children.hold(
            kind,
            asked,
            folder=folder,
            watch=self._on_event,
            cancel=self.cancel,
            stall_seconds=self.stall_seconds,
        )

    def ask(self, held: Held[Any] | RemoteHeld, asks: Any, answer: type[Answer]) -> Answer:
        """Ask a job that is held; raises as `job`."""
        return held.ask(
            asks,
            answer,
            watch=self._on_event,
            cancel=self.cancel,
            stall_seconds=self.stall_seconds,
        )

    def plan(self) -> dict[str, RecipePlan]:
        """Resolve the device, and bytes and layers of each recipe, in a child; by recipe label.

        This process stays light, and nothing is written.
        """
        self.enter_stage("planning")
        request = self.request
        asked = PlanJob(
            request.source,
            request.workload.device,
            request.workload.dtype,
            request.components,
            request.recipes,
            request.workload.size,
            request.lora,
            request.workload.frames,
        )
        with scratch_folder("plan") as folder:
            planned = self.job(PLAN, asked, folder)
        self._choose_ways(planned)
        if planned.emulated:
            dtype = request.workload.dtype
            self.dtype_note = (
                f"this processor doesn't compute in {dtype} by itself: pictures take many times "
                "as long as with --dtype float32"
            )
            self.enter_stage(self.dtype_note)
        self._lora_bytes = planned.lora_bytes
        workload = dataclasses.replace(request.workload, device=planned.device)
        self.request = dataclasses.replace(request, workload=workload)
        return {r.label: p for r, p in zip(request.recipes, planned.plans, strict=True)}

    def _choose_ways(self, planned: Planned) -> None:
        """Choose how each recipe gets onto the device, and say so where it isn't all at once."""
        asked = check_offload(self.request.offload, planned.device)
        self.free_bytes, self.needs = planned.free_bytes, planned.needs
        self.ways = chosen_ways(planned.needs, planned.free_bytes)
        if asked is not None:
            tiled = asked != RESIDENT and any(way.tiled for way in self.ways.values())
            self.ways = {recipe.label: Way(asked, tiled) for recipe in self.request.recipes}
        self.way_note = way_words(self.ways, planned.needs, planned.free_bytes)
        if self.way_note:
            self.enter_stage(self.way_note)

    def after_out_of_memory(self, recipe: Recipe) -> Way | None:
        """Return the next milder way of a recipe that ran out of memory; None if there is none."""
        on_device = self.request.workload.device.partition(":")[0] in ("cuda", "xpu")
        if self.request.offload is not None or not on_device:
            return None
        way = milder(self.ways.get(recipe.label, Way()))
        if way is not None:
            self.ways[recipe.label] = way
        return way

    def encode(self, work: Path) -> Path | None:
        """Encode the prompts once for all trials and return the file.

        None if text encoders are among what is quantized or a LoRA changes, or the pipeline takes
        only text. Where an accelerator's memory doesn't hold the encoders, the processor encodes.
        """
        changed = (*self.request.components, *self._lora_bytes)
        if any(name.startswith("text_encoder") for name in changed):
            return None
        self.enter_stage("encoding prompts")
        path = work / "prompts.safetensors"
        source, workload = self.request.source, self.request.workload
        asked = EncodeJob(source, workload, path)
        on_cpu = EncodeJob(source, dataclasses.replace(workload, device="cpu"), path)
        encode = max((need.encode or 0 for need in self.needs.values() if need), default=0)
        if self.free_bytes is not None and encode > self.free_bytes:
            asked = on_cpu
        try:
            found = self.job(ENCODE, asked, work / "encode")
        except JobOutOfMemory:
            if asked == on_cpu:
                raise
            found = self.job(ENCODE, on_cpu, work / "encode-cpu")
        return path if found.ahead else None

    def trial_job(
        self,
        recipe: Recipe,
        encoded: Path | None,
        compiled: bool = False,
        *,
        held: bool = False,
        known: bool = False,
        way: Way | None = None,
    ) -> TrialJob:
        """Return what a child needs to know to run a trial."""
        request = self.request
        way = way or self.ways.get(recipe.label, Way())
        return TrialJob(
            request.source,
            request.workload,
            recipe,
            request.components,
            compiled,
            encoded,
            held,
            known,
            with_room(way, self.needs.get(recipe.label), self.free_bytes),
            lora=request.lora,
        )

    def open_crew(self, content: ModelContent) -> None:
        """Have the workers get ready, and take the device that they have."""
        assert self.crew is not None
        self.crew.open(content, self._tell_workers, self.cancel)
        workload = dataclasses.replace(self.request.workload, device=self.crew.device)
        self.request = dataclasses.replace(self.request, workload=workload)

    def _tell_workers(self, ready: int) -> None:
        stage = f"waiting for workers, {ready} ready"
        if stage != self.stage:
            self.enter_stage(stage)

    def picture_made(self) -> None:
        """Count a picture for the seconds to go."""
        self._pace.picture()
        self._own_pace.picture()

    def _on_event(self, event: Event) -> None:
        made = None
        if event.kind == "stage":
            self.stage = event.stage
        elif event.kind == "picture":
            self.done += 1
            self.picture_made()
        elif event.kind == "file" and self.label and event.path and event.done is not None:
            pair = self.request.workload.pairs[event.done]
            made = MadePicture((self.label, *pair), event.path)
        self.tell(picture=made)
