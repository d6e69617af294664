"""Pictures by several workers at once; what is timed afterwards is timed by itself, one by one."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import JobOutOfMemory, QuantolabError
from ..records import OK, ROUNDS, PictureQuality, Trial, ended
from ..weights import REFERENCE
from .at_worker import Facts, Order
from .crew import Crew, Ended, RemoteHeld, Told
from .jobs import IMAGES, MAKING, TrialFound
from .kinds import TRIAL
from .rounds import way_of_timing
from .session import MadePicture

if TYPE_CHECKING:
    from .journal import Journal
    from .session import Session

LEAST_SLICE = 16
"""Pictures that are worth loading a recipe once more for."""


@dataclass
class _Part:
    """Some pictures of a trial, made by one worker."""

    order: Order
    numbers: tuple[int, ...]
    ended: Ended | None = None
    where: Facts | None = None


@dataclass
class _Making:
    """A trial whose pictures are being made."""

    trial: Trial
    work: Path
    parts: list[_Part] = field(default_factory=list)
    made: set[int] = field(default_factory=set)
    error: QuantolabError | None = None
    again: bool = False
    """Whether it ran out of memory, and comes once more in a milder way."""


def slices(pictures: int, workers: int) -> list[tuple[int, ...]]:
    """Return the numbers of a recipe's pictures in as many slices as it is worth.

    >>> [len(part) for part in slices(100, 4)], len(slices(12, 4))
    ([25, 25, 25, 25], 1)
    """
    count = max(1, min(workers, pictures // LEAST_SLICE))
    edges = [pictures * number // count for number in range(count + 1)]
    return [tuple(range(a, b)) for a, b in itertools.pairwise(edges)]


class Spread:
    """The trials of a run, made by a crew.

    Parameters
    ----------
    session : Session
        Of the run.
    crew : Crew
        Who works.
    journal : Journal
        Which keeps what is done.
    keep : callable
        Keeps a trial that has ended, with the folder of its pictures; returns it as it was kept.
    """

    def __init__(
        self,
        session: Session,
        crew: Crew,
        journal: Journal,
        keep: Callable[[Trial, Path], Trial],
    ) -> None:
        self._session = session
        self._crew = crew
        self._journal = journal
        self._keep = keep
        self._making: dict[str, _Making] = {}
        self._of_token: dict[str, tuple[_Making, _Part]] = {}
        self._floor: dict[int, PictureQuality] = {}
        self._stages: dict[str, str] = {}
        self._before = session.done
        self._finished = 0
        self.alive: dict[str, RemoteHeld] = {}

    def make(self, trials: Sequence[Trial], encoded: Path | None) -> dict[str, RemoteHeld]:
        """Have all pictures made, in whatever order they come; return what waits to be timed."""
        for number, trial in enumerate(trials):
            self._begin(trial, encoded, self._journal.work / f"trial-{number}")
        self._tell()
        while self._making:
            heard = self._crew.hear(self._session.cancel)
            if isinstance(heard, Told):
                self._on_told(heard)
            elif heard is not None:
                self._on_ended(heard, encoded)
            self._tell()
        return self.alive

    def _begin(self, trial: Trial, encoded: Path | None, work: Path) -> None:
        making = self._making[trial.label] = _Making(trial, work)
        asked = self._session.trial_job(trial.recipe, encoded, trial.compiled, held=True)
        wants_floor = (
            trial.label == REFERENCE
            and not self._journal.floor
            and len(self._session.request.trials) > 1
            and asked.way.offload == "none"
        )
        pictures = len(self._journal.workload.pairs)
        for number, numbers in enumerate(slices(pictures, len(self._crew.facts))):
            order = self._crew.order(
                TRIAL,
                dataclasses.replace(asked, numbers=numbers),
                self._session.stall_seconds,
                floor=numbers if wants_floor else (),
                held=number == 0,
            )
            part = _Part(order, numbers)
            making.parts.append(part)
            self._of_token[order.token] = making, part
            self._crew.begin(order, work / f"part-{number}")

    def _on_told(self, told: Told) -> None:
        if told.token not in self._of_token:
            return
        making, _ = self._of_token[told.token]
        if told.event.kind == "stage":
            self._stages[told.token] = told.event.stage
        elif told.event.kind == "file" and told.event.done is not None:
            making.made.add(told.event.done)
            self._session.picture_made()

    def _on_ended(self, heard: Ended, encoded: Path | None) -> None:
        making, part = self._of_token.pop(heard.token)
        part.ended, part.where = heard, self._crew.facts.get(heard.worker)
        self._stages.pop(heard.token, None)
        if heard.error is None and making.error is None:
            self._show(making, part)
            self._floor |= dict(zip(part.numbers, heard.floor, strict=False))
        elif heard.error is not None and making.error is None:
            making.error, making.again = heard.error, self._milder(making, heard.error)
            waiting = {p.order.token for p in making.parts if p.ended is None}
            self._crew.drop(waiting - {*self._crew.busy.values()})
            for token in waiting - {*self._crew.busy.values()}:
                self._of_token.pop(token)[1].ended = Ended(token, None, heard.error, (), "")
        if not all(p.ended is not None for p in making.parts):
            return
        if making.again:
            self._let_go(making)
            shutil.rmtree(making.work, ignore_errors=True)
            self._begin(making.trial, encoded, making.work)
        else:
            self._finish(making)

    def _milder(self, making: _Making, error: QuantolabError) -> bool:
        """Whether a trial that ran out of memory can run in a milder way, as it will then."""
        if not isinstance(error, JobOutOfMemory):
            return False
        return self._session.after_out_of_memory(making.trial.recipe) is not None

    def _let_go(self, making: _Making) -> None:
        """End what waits of a trial's parts that ended well, where another one failed."""
        for part in making.parts:
            if part.order.held and part.ended is not None and part.ended.error is None:
                self._crew.held(part.ended, part.order).end()

    def _show(self, making: _Making, part: _Part) -> None:
        """Tell of a part's pictures, where they lie now."""
        place = making.work / f"part-{making.parts.index(part)}" / IMAGES
        for number in part.numbers:
            pair = self._journal.workload.pairs[number]
            path = place / f"{number:03d}.png"
            self._session.tell(picture=MadePicture((making.trial.label, *pair), path))

    def _finish(self, making: _Making) -> None:
        """Keep a trial whose parts have all ended, and its process if it may wait to be timed."""
        del self._making[making.trial.label]
        images = making.work / IMAGES
        images.mkdir(parents=True, exist_ok=True)
        trial = making.trial
        first = making.parts[0].ended
        if making.error is not None:
            trial = ended(trial, making.error)
            self._keep_logs(making)
        else:
            for number in range(len(making.parts)):
                for path in (making.work / f"part-{number}" / IMAGES).glob("*.png"):
                    path.replace(images / path.name)
            trial = self._as_trial(making)
        pictures = len(self._journal.workload.pairs)
        self._finished += pictures
        if len(self._floor) == pictures and not self._journal.floor:
            self._journal.floor = tuple(self._floor[n] for n in range(pictures))
        kept = self._keep(trial, making.work)
        shutil.rmtree(making.work, ignore_errors=True)
        if not kept.ok:
            self._finished += self._journal.workload.repeats  # those that won't be made
        if first is not None and first.error is None:
            self._may_wait(kept, making.parts[0])

    def _keep_logs(self, making: _Making) -> None:
        """Keep what the processes of a trial that failed printed last."""
        logs = [path.read_text() for path in sorted(making.work.glob("part-*/log.txt"))]
        if any(logs):
            self._journal.keep_log(making.trial, "\n".join(filter(None, logs)))

    def _as_trial(self, making: _Making) -> Trial:
        found = [part.ended.found for part in making.parts if part.ended is not None]
        main: TrialFound = found[0]
        warmup = tuple(seconds for one in found for seconds in one.timing.warmup)
        names = {f.name for f in dataclasses.fields(Trial)}
        figures = {k: v for k, v in vars(main).items() if k in names}
        notes = dict.fromkeys(note for one in found for note in one.notes)
        for part, one in zip(making.parts[1:], found[1:], strict=True):
            if one.conditions.device_name != main.conditions.device_name:
                notes[
                    f"pictures {part.numbers[0] + 1} to {part.numbers[-1] + 1} were made by "
                    f"{one.conditions.device_name}"
                ] = None
        figures["timing"] = dataclasses.replace(main.timing, warmup=warmup)
        figures["notes"] = tuple(notes)
        asked = making.parts[0].order.asked
        if self._session.request.workload.device != "cpu":
            figures |= {"offload": asked.way.offload, "tiled": asked.way.tiled}
        return dataclasses.replace(making.trial, status=OK, **figures)

    def _may_wait(self, kept: Trial, part: _Part) -> None:
        """Let a trial's process wait to be timed, if that is its place and there is room."""
        assert part.ended is not None
        held = self._crew.held(part.ended, part.order)
        if kept.ok and self._crew.place is None and kept.label == REFERENCE:
            self._crew.place = part.where
        others = [making.trial for making in self._making.values()]
        on_cpu = self._journal.workload.device == "cpu"
        way = way_of_timing(held.found, others, on_cpu=on_cpu, against_first=False)
        if kept.ok and kept.resident and way == ROUNDS:
            self.alive[kept.label] = held
        else:
            held.end()

    def settle(self) -> None:
        """Choose where all are timed: where the reference is, else where the most wait."""
        places = [self._crew.facts.get(held.worker) for held in self.alive.values()]
        known = [place for place in places if place is not None]
        if self._crew.place is None:
            self._crew.place = max(known, key=known.count, default=None)
        for label, held in list(self.alive.items()):
            if not self._crew.is_place(self._crew.facts.get(held.worker)):
                self.alive.pop(label).end()

    def _tell(self) -> None:
        session = self._session
        under_way = sum(len(making.made) for making in self._making.values())
        done = self._before + self._finished + under_way
        doing = tuple(
            (f"worker {self._crew.number(worker) + 1}", self._doing(token))
            for worker, token in sorted(
                self._crew.busy.items(), key=lambda item: self._crew.number(item[0])
            )
        )
        if (done, doing) != (session.done, session.doing):
            session.done, session.doing = done, doing
            session.stage, session.label = MAKING, None
            session.tell()

    def _doing(self, token: str) -> str:
        if token not in self._of_token:
            return "ending"
        making, part = self._of_token[token]
        stage = self._stages.get(token, "beginning")
        if stage == MAKING:
            stage = f"{len(making.made & {*part.numbers})} of {len(part.numbers)}"
        return f"{making.trial.label}: {stage}"
