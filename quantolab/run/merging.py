"""Runs of one workload that were made apart (two machines, two days) become one.

What was timed in one run never meets what was timed in another: rounds are numbered anew, so that
only seconds of the same round are divided. Of a run that is a copy of another, which went on or
not, what both hold counts once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgumentError
from ..records import ALONE, BORROWED, Borrowed, Comparison, Timing, Trial, picture_reference
from ..units import format_list
from ..weights import REFERENCE
from . import journal
from .identity import differences, other_content
from .judging import judged, other_conditions, version_notes
from .rounds import NO_ROUND, SAME_MACHINE, most_of

_UNCHECKED = (
    "not every run that was merged kept a digest of its model: whether all are of the same weights "
    "was not checked"
)


@dataclass(frozen=True)
class Run:
    """One of the runs."""

    name: str
    """Its folder, as it is told in sentences."""
    comparison: Comparison
    """With its pictures."""
    asked: tuple[Trial, ...]
    """All trials that it asks for, ended or not."""


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs that folders hold.

    Raises
    ------
    ArgumentError
        If these aren't two folders or more, or one is still being filled.
    ModelNotFoundError, BrokenModelError
        If one holds no run, or one that can't be read.
    """
    places = [folder.expanduser() for folder in folders]
    if len(places) < 2:
        raise ArgumentError(f"merge takes the folders of two runs or more, not {len(places)}")
    if len({place.resolve() for place in places}) < len(places):
        raise ArgumentError(f"merge was given a folder twice: {_listed(map(str, places))}")
    for place in places:
        if journal.is_held(place):
            raise ArgumentError(f"the run in {str(place)!r} is still going on; merge it afterwards")
    return [Run(str(p), journal.read(p), journal.read_asked(p)) for p in places]


def joined(runs: Sequence[Run]) -> tuple[Comparison, tuple[Trial, ...]]:
    """Return several runs as one comparison, and the trials that it asks for.

    Each trial is there once. Where several runs hold it, its pictures are those of the first in
    which it went well, and its rounds those of all runs that timed it on the same kind of device.
    Every row is judged against the same reference.

    Raises
    ------
    ArgumentError
        If the runs don't fit: another workload or model, bytes counted of other components, or
        the same trial with other results under the same conditions.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_fits(first, other)
    _check_counted(runs)
    notes: list[str] = [note for run in runs for note in run.comparison.notes]
    if any(_knows_nothing(run.comparison) for run in runs):
        notes.append(_UNCHECKED)
    trials: dict[str, Trial] = {}
    home: dict[str, Run] = {}
    start = 0  # of the next run's rounds
    for run in runs:
        numbers = _round_numbers(run, trials, start)
        for trial in run.comparison.trials:
            trial = _renumbered(trial, numbers)
            kept = trials.get(trial.label)
            if kept is None:
                trials[trial.label], home[trial.label] = trial, run
                continue
            chosen, said = _one_of_two(kept, home[trial.label], trial, run)
            trials[trial.label] = chosen
            if not kept.ok and trial.ok:
                home[trial.label] = run
            notes += said
        start = _next_round(trials.values())
    return _as_one(runs, trials, home, notes), _asked(runs)


def _listed(names) -> str:
    return format_list([repr(name) for name in names])


def _check_fits(first: Run, other: Run) -> None:
    ours, theirs = first.comparison, other.comparison
    free = ["repeats", "device"]
    if ours.content is not None and theirs.content is not None:
        free += ["model", "revision"]  # their contents tell, wherever they lay
        said = other_content(ours.content, theirs.content)
        if said:
            raise ArgumentError(f"{_pair(first, other)} are of different models: {said}")
    said = differences(ours.workload, theirs.workload, but=tuple(free))
    kinds = [run.workload.device.partition(":")[0] for run in (ours, theirs)]
    if kinds[0] != kinds[1]:
        said = "; ".join(filter(None, [said, "device was {!r}, now {!r}".format(*kinds)]))
    if said:
        raise ArgumentError(
            f"{_pair(first, other)} can't be merged, their workloads differ: {said}"
        )


def _pair(first: Run, other: Run) -> str:
    return f"the runs in {first.name!r} and {other.name!r}"


def _check_counted(runs: Sequence[Run]) -> None:
    """Make sure that all count the bytes of the same components."""
    counted = [(run, {n for t in run.comparison.trials for n in t.components}) for run in runs]
    told = [(run, names) for run, names in counted if names]
    for run, names in told[1:]:
        if names != told[0][1]:
            raise ArgumentError(
                f"{_pair(told[0][0], run)} count the bytes of different components "
                f"({_listed(sorted(told[0][1]))}; {_listed(sorted(names))}), which couldn't be "
                "compared"
            )


def _knows_nothing(comparison: Comparison) -> bool:
    return comparison.content is None and comparison.workload.revision is None


def _round_numbers(run: Run, trials: Mapping[str, Trial], start: int) -> dict[int, int]:
    """Return what the rounds of a run are called among those before it.

    They come after all of those; but for rounds that another run holds too, to the last digit of
    a second.
    """
    known = {
        (label, seconds): number
        for label, trial in trials.items()
        for number, seconds in _numbered(trial.timing)
    }
    numbers: dict[int, int] = {}
    for trial in run.comparison.trials:
        for number, seconds in _numbered(trial.timing):
            there = known.get((trial.label, seconds), NO_ROUND)
            numbers[number] = there if there != NO_ROUND else numbers.get(number, number + start)
    return numbers | {NO_ROUND: NO_ROUND}


def _renumbered(trial: Trial, numbers: Mapping[int, int]) -> Trial:
    timing = trial.timing
    if timing is None:
        return trial
    rounds = tuple(numbers[number] for number, _ in _numbered(timing))
    return dataclasses.replace(trial, timing=dataclasses.replace(timing, rounds=rounds))


def _numbered(timing: Timing | None) -> list[tuple[int, float]]:
    """Return each sample with the number of its round."""
    if timing is None:
        return []
    count = len(timing.samples)
    rounds = (*timing.rounds, *[NO_ROUND] * count)[:count]
    return [(max(n, NO_ROUND), s) for n, s in zip(rounds, timing.samples, strict=True)]


def _next_round(trials) -> int:
    taken = [n for trial in trials if trial.timing for n in trial.timing.rounds]
    return max(taken, default=NO_ROUND) + 1


def _one_of_two(kept: Trial, home: Run, trial: Trial, run: Run) -> tuple[Trial, list[str]]:
    """Return what stays of a trial that two runs hold, and what is to be said of it."""
    label = kept.label
    if not (kept.ok and trial.ok):
        chosen, other = (trial, kept) if trial.ok else (kept, trial)
        where = home.name if other is kept else run.name
        return chosen, [f"{label} in {where!r}: {other.status}, {other.reason}"]
    explained = other_conditions(trial, kept)
    if kept.weight_bytes != trial.weight_bytes:
        raise ArgumentError(
            f"{_pair(home, run)} can't be merged: both hold {label!r}, with {kept.weight_bytes} "
            f"and {trial.weight_bytes} bytes of weights"
        )
    if not _same_pictures(home.comparison, run.comparison, label) and not explained:
        raise ArgumentError(
            f"{_pair(home, run)} can't be merged: both hold {label!r}, with other pictures though "
            "nothing that makes them is known to differ"
        )
    if _same_kind(kept, trial):
        return dataclasses.replace(kept, timing=_both(kept.timing, trial.timing)), []
    why = f", made with {'; '.join(explained)}" if explained else ""
    return kept, [f"{label} is that of {home.name!r}; the one in {run.name!r}{why} was left out"]


def _same_pictures(one: Comparison, other: Comparison, label: str) -> bool:
    return all(
        one.images[label, *pair].tobytes() == other.images[label, *pair].tobytes()
        for pair in one.workload.pairs
    )


def _same_kind(one: Trial, other: Trial) -> bool:
    """Whether seconds of two trials may stand in one row."""
    ours, theirs = one.timed_under, other.timed_under
    if ours is None or theirs is None:
        return False
    same = (getattr(ours, name) == getattr(theirs, name) for name in SAME_MACHINE)
    return all(same) and (one.offload, one.tiled) == (other.offload, other.tiled)


def _both(one: Timing | None, other: Timing | None) -> Timing | None:
    """Return two timings as one; what one of them took alone can't be told from its rounds."""
    if one is None or other is None:
        return one or other
    ours = _numbered(one)
    both = [*ours, *(sample for sample in _numbered(other) if sample not in ours)]
    return dataclasses.replace(
        one,
        samples=tuple(seconds for _, seconds in both),
        rounds=tuple(number for number, _ in both),
        timed=other.timed if one.timed == ALONE else one.timed,
        other_load=most_of(one.other_load, other.other_load),
        other_bytes=most_of(one.other_bytes, other.other_bytes),
    )


def _as_one(
    runs: Sequence[Run], trials: dict[str, Trial], home: dict[str, Run], notes: list[str]
) -> Comparison:
    workload = runs[0].comparison.workload
    images = {
        (label, *pair): home[label].comparison.images[label, *pair]
        for label, trial in trials.items()
        if trial.ok
        for pair in workload.pairs
    }
    reference = trials.get(REFERENCE)
    judge = home[REFERENCE] if reference is not None and reference.ok else None
    lent = None if judge is not None else _lent(runs)
    borrowed = None if lent is None else lent.comparison.borrowed
    if lent is not None:
        theirs = lent.comparison.images
        images |= {(BORROWED, *pair): theirs[BORROWED, *pair] for pair in workload.pairs}
    by = borrowed or picture_reference(trials.values())
    if by is not None:
        for label, trial in trials.items():
            if trial.ok:
                trials[label] = _judged_anew(trial, by, home[label], images)
    seconds = [run.comparison.wall_seconds for run in runs]
    return Comparison(
        dataclasses.replace(workload, repeats=max(run.comparison.workload.repeats for run in runs)),
        tuple(trials[t.label] for t in _asked(runs) if t.label in trials),
        images,
        wall_seconds=math.fsum(s for s in seconds if s is not None) or None,
        content=next((r.comparison.content for r in runs if r.comparison.content), None),
        notes=tuple(dict.fromkeys(notes)),
        floor=judge.comparison.floor if judge is not None else (),
        borrowed=borrowed,
    )


def _lent(runs: Sequence[Run]) -> Run | None:
    """Return the first run that has pictures of another to judge by."""
    return next((run for run in runs if run.comparison.borrowed is not None), None)


def _judged_anew(trial: Trial, by: Trial | Borrowed, run: Run, images) -> Trial:
    """Return a trial as it compares with a reference, which may be that of another run."""
    key, said = (BORROWED, by.folder) if isinstance(by, Borrowed) else (by.label, by.label)
    if trial.label == key:
        return dataclasses.replace(trial, quality=(), judged_by=None)
    own, pairs = run.comparison.judge, run.comparison.workload.pairs
    same = own is not None and all(
        run.comparison.images[own, *pair].tobytes() == images[key, *pair].tobytes()
        for pair in pairs
    )
    if same and trial.quality:
        judged_by = trial.judged_by if (trial.judged_by or REFERENCE) == said else said
        return dataclasses.replace(trial, judged_by=judged_by)
    quality = tuple(judged(*pair, images[trial.label, *pair], images[key, *pair]) for pair in pairs)
    notes = tuple(dict.fromkeys((*trial.notes, *version_notes(trial, by))))
    return dataclasses.replace(trial, quality=quality, notes=notes, judged_by=said)


def _asked(runs: Sequence[Run]) -> tuple[Trial, ...]:
    """Return every trial that any run asks for, once, the first run's first."""
    found = {trial.label: trial for run in runs for trial in run.asked}
    return tuple(Trial(trial.recipe, compiled=trial.compiled) for trial in found.values())
