"""Trials that are timed in turn: a round is one generation each, in an order drawn anew.

Their processes stay alive with their weights after the pictures are made. Whether all of them fit
into memory together is decided from predicted and measured bytes before the second one starts,
never by running out of memory; see `way_of_timing`.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ..errors import Cancelled, QuantolabError, WorkersLost
from ..measure.other_load import share_of
from ..measure.ratios import NOT_DECIDED, ratio_of
from ..records import (
    ALONE,
    PAIRS,
    ROUNDS,
    Conditions,
    Timed,
    Timing,
    Trial,
    ended,
    speed_reference,
)
from .jobs import NOT_REPEATABLE, Generated, Generation, TrialFound, compile_seconds
from .journal import Journal

if TYPE_CHECKING:
    from ..processes.children import Held
    from .session import Session

Figure = TypeVar("Figure", int, float)

NO_ROUND = -1
"""Number of the round of a sample that was taken in none."""

_CONTEXT_BYTES = 1 << 30  # of an accelerator's memory what a process takes beside what it allocates
_SPARE = 0.9  # of what is free: loading takes more for a moment than what it leaves
SAME_MACHINE = ("device_name", "threads", "torch")
"""Conditions that must agree before seconds may stand beside others."""


def way_of_timing(
    found: TrialFound, others: Sequence[Trial], *, on_cpu: bool, against_first: bool
) -> Timed:
    """Return how trials can be timed, once the first of them holds what it needs.

    Parameters
    ----------
    found : TrialFound
        What the first found: what it holds, and what is free beside it.
    others : sequence of Trial
        Those that follow, with their predicted bytes.
    on_cpu : bool
        Whether the processor's memory holds them.
    against_first : bool
        Whether the others are told against the first.
    """
    if found.room_bytes is None or not others:
        return ROUNDS
    # On a CPU the peak counts libraries, which all processes share.
    holds = found.private_bytes if on_cpu and found.private_bytes else found.peak_bytes or 0
    beside = max(0, holds - found.weight_bytes)
    beside += min(found.beside_bytes or 0, _CONTEXT_BYTES)
    needed = [(t.predicted_weight_bytes or found.weight_bytes) + beside for t in others]
    room = _SPARE * found.room_bytes
    if sum(needed) <= room:
        return ROUNDS
    return PAIRS if against_first and max(needed) <= room else ALONE


def bytes_of_others(answers: Sequence[Generated], alive: int) -> int | None:
    """Return what other programs held of an accelerator's memory in a round, at the least.

    Parameters
    ----------
    answers : sequence of Generated
        Of the round.
    alive : int
        How many processes of ours hold something there, those that gave no answer too.

    Returns
    -------
    int or None
        What everybody held without what ours allocated and may have taken beside it; None where
        the device doesn't say, or not all that are alive have answered.
    """
    told = [answer.device_bytes for answer in answers if answer.device_bytes is not None]
    if not told or len(told) < alive:
        return None
    ours = sum(own for _, own in told) + alive * _CONTEXT_BYTES
    return max(0, min(everybody for everybody, _ in told) - ours)


@dataclass
class _Alive:
    """A trial whose process waits, and what it has given since it does."""

    trial: Trial
    held: Held[TrialFound]
    timed: Timed = ALONE
    answers: list[tuple[int, Generated]] = field(default_factory=list)
    other_bytes: int | None = None

    def __post_init__(self) -> None:
        self.where = self.held.found.conditions

    def take(self, number: int, answer: Generated) -> None:
        """Take in what it gave in a round.

        Of a process that had to move to another kind of device, since its worker died, only what
        it gave there counts: seconds of two devices make no row.
        """
        now = self.held.found.conditions
        if not _same_machine(self.where, now):
            self.where = now
            self.answers.clear()
            timing = self.trial.timing
            if timing is not None:
                timing = dataclasses.replace(timing, samples=(), rounds=())
                self.trial = dataclasses.replace(self.trial, timing=timing)
        self.answers.append((number, answer))

    def timed_trial(self) -> Trial:
        """Return the trial with all of its rounds, those of an earlier run first."""
        before = self.trial.timing or Timing(())
        numbers = (*before.rounds, *[NO_ROUND] * len(before.samples))[: len(before.samples)]
        timing = dataclasses.replace(
            before,
            samples=(*before.samples, *(a.seconds for _, a in self.answers)),
            rounds=(*numbers, *(number for number, _ in self.answers)),
            other_load=self._other_load(before),
            timed=self.timed,
            other_bytes=most_of(before.other_bytes, self.other_bytes),
        )
        notes = self.trial.notes
        if not all(answer.same for _, answer in self.answers):
            notes = tuple(dict.fromkeys((*notes, NOT_REPEATABLE)))
        compiling = compile_seconds(timing) if self.trial.compiled else None
        made = self.trial.conditions
        elsewhere = made is not None and not _same_machine(made, self.where)
        return dataclasses.replace(
            self.trial,
            timing=timing,
            notes=notes,
            compile_seconds=compiling,
            timed_on=self.where if elsewhere else None,
        )

    def _other_load(self, before: Timing) -> float | None:
        taken = [a.other_seconds for _, a in self.answers if a.other_seconds is not None]
        if not taken:
            return before.other_load
        now = share_of(math.fsum(taken), math.fsum(a.room_seconds for _, a in self.answers))
        return most_of(now, before.other_load)


def most_of(*figures: Figure | None) -> Figure | None:
    """Return the largest of what is known; None if nothing is."""
    return max((figure for figure in figures if figure is not None), default=None)


class Lineup:
    """Trials that are alive, and their timing. Use as a context manager: it ends them.

    Parameters
    ----------
    session : Session
        Whose children they are.
    journal : Journal
        Which keeps each round as soon as it is over.
    most_rounds : int or None
        To go on until every verdict stands, but for no more rounds than that; None for
        `repeats` rounds.
    """

    def __init__(self, session: Session, journal: Journal, most_rounds: int | None) -> None:
        self._session = session
        self._journal = journal
        self._most = most_rounds
        self._alive: dict[str, _Alive] = {}
        self._way: Timed | None = None
        self._first = ""
        """The first that may wait for others."""

    def __enter__(self) -> Lineup:
        return self

    def __exit__(self, *error: object) -> None:
        for label in list(self._alive):
            self._end(label)

    def take(self, trial: Trial, held: Held[TrialFound], later: Sequence[Trial]) -> None:
        """Take in a trial that is alive; where it can't wait for the others it is timed at once.

        Parameters
        ----------
        trial : Trial
            With its pictures kept.
        held : Held
            Its process.
        later : sequence of Trial
            Those that follow.
        """
        self._alive[trial.label] = _Alive(trial, held)
        if not trial.resident:  # its seconds say nothing of others', and the card is theirs
            self._time([trial.label])
            self._end(trial.label)
            return
        if self._way is None:
            reference, self._first = self._reference(), trial.label
            self._way = way_of_timing(
                held.found,
                later,
                on_cpu=self._journal.workload.device == "cpu",
                against_first=reference is not None and reference.label == trial.label,
            )
        if self._way == PAIRS and trial.label != self._first:
            self._time([label for label in (self._first, trial.label) if label in self._alive])
            self._end(trial.label)
        elif self._way == ALONE:
            self._time([trial.label])
            self._end(trial.label)

    def finish(self) -> None:
        """Time all that still wait to be: everybody in rounds, or a reference without a pair."""
        if self._way == ROUNDS or not any(alive.answers for alive in self._alive.values()):
            self._time(list(self._alive))

    def _time(self, labels: list[str]) -> None:
        if not labels:
            return
        for label in labels:
            way = self._way if self._way and len(labels) > 1 else ALONE
            self._alive[label].timed = way
        first, wanted = self._next_round(), self._missing(labels)
        number = 0
        while any(label in self._alive for label in labels):
            if number >= wanted and not self._goes_on(labels):
                break
            self._session.round = (number + 1, max(wanted, number + 1))
            self._round(labels, first + number)
            number += 1
        self._session.round = None

    def _round(self, labels: list[str], number: int) -> None:
        """Have each make one picture, the same, in an order drawn anew; keep the round."""
        picture = number % len(self._journal.workload.pairs)
        answers: dict[str, Generated] = {}
        for label in random.sample(labels, len(labels)):
            if label not in self._alive:
                continue  # it died in an earlier round
            self._session.enter_stage("timing", label)
            try:
                answers[label] = self._session.ask(
                    self._alive[label].held, Generation(picture), Generated
                )
            except (Cancelled, WorkersLost):
                raise
            except (QuantolabError, OSError) as error:
                self._fail(label, error)
        for label in list(answers):
            kept = self._journal.done(label)
            if kept is None or not kept.ok:  # its pictures have gone meanwhile
                del answers[label]
                self._end(label)
        others = bytes_of_others(list(answers.values()), len(self._alive))
        for label, answer in answers.items():
            alive = self._alive[label]
            alive.other_bytes = most_of(alive.other_bytes, others)
            alive.take(NO_ROUND if alive.timed == ALONE else number, answer)
        self._journal.put(
            [self._alive[label].timed_trial() for label in answers], self._session.elapsed
        )

    def _fail(self, label: str, error: Exception) -> None:
        """Keep a trial as failed, and its pictures as they are."""
        failed = dataclasses.replace(ended(self._alive[label].trial, error, "timing"), timing=None)
        self._end(label)
        self._journal.put([failed], self._session.elapsed)
        self._session.tell(failed)

    def _end(self, label: str) -> None:
        alive = self._alive.pop(label, None)
        if alive is not None:  # else it died while it was timed
            alive.held.end()

    def _next_round(self) -> int:
        taken = [n for t in self._journal.trials if t.timing for n in t.timing.rounds]
        return max(taken, default=NO_ROUND) + 1

    def _missing(self, labels: list[str]) -> int:
        """Return how many rounds it takes until everybody has as many as were asked for."""
        trials = [self._alive[label].trial for label in labels]
        return max((missing_rounds(t, self._reference(), self._journal) for t in trials), default=0)

    def _reference(self) -> Trial | None:
        return speed_reference(self._journal.trials)

    def _goes_on(self, labels: Iterable[str]) -> bool:
        """Whether a verdict is open that more rounds may decide, within the limit."""
        reference = self._reference()
        if self._most is None or reference is None or not reference.ok:
            return False
        for label in labels:
            trial = self._journal.done(label)
            if label not in self._alive or trial is None or label == reference.label:
                continue
            if is_open(trial, reference, self._most):
                return True
        return False


def is_open(trial: Trial, reference: Trial, most_rounds: int) -> bool:
    """Whether a trial's verdict doesn't stand, and may have more rounds."""
    if not trial.ok or trial.timing is None or reference.timing is None:
        return False
    ratio = ratio_of(reference.timing, trial.timing)
    return ratio is not None and ratio.rounds < most_rounds and ratio.verdict in (None, NOT_DECIDED)


def missing_rounds(trial: Trial, reference: Trial | None, journal: Journal) -> int:
    """Return how many rounds a trial has less than were asked for; 0 of what was timed alone."""
    wanted, timing = journal.workload.repeats, trial.timing
    if timing is None or not timing.samples:
        return wanted
    paired = reference is not None and reference.ok and trial.label != reference.label
    if timing.timed == ALONE or not paired:
        return max(0, wanted - len(timing.samples))
    ratio = None if reference.timing is None else ratio_of(reference.timing, timing)
    return max(0, wanted - (0 if ratio is None else ratio.rounds))


def on_the_same_machine(trial: Trial, found: TrialFound) -> bool:
    """Whether seconds that a trial has may stand beside those of a process of now."""
    if trial.timing is None or not trial.timing.samples or trial.timed_under is None:
        return True
    return _same_machine(trial.timed_under, found.conditions)


def _same_machine(one: Conditions, other: Conditions) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in SAME_MACHINE)
