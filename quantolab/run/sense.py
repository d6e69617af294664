"""What a run's record says must also make sense: a stranger's file can have every type right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ..measure.frames import MOST_FRAMES
from ..records import PictureQuality, Trial, Workload

_LARGEST_SIDE = 1 << 17  # pixels; no picture file that we write has more

_MOST_DECIBELS = 1000  # one step in one of all values of the largest pictures gives less


def check_sense(
    workload: Workload,
    trials: tuple[Trial, ...],
    seconds: float | None,
    floor: Iterable[PictureQuality] = (),
) -> None:
    """Make sure that figures can have been measured, and that each trial stands there once.

    Raises
    ------
    ValueError
        If not, with the place and what is there.
    """
    _check_workload(workload)
    _check_once("trials", (trial.label for trial in trials))
    for place, figure in (("wall_seconds", seconds), *_figures(trials)):
        if figure is not None and not 0 <= figure < math.inf:  # nor NaN, which is less than nothing
            raise ValueError(f"{place} must be a finite number of 0 or more, not {figure}")
    for place, qualities in (*((t.label, t.quality) for t in trials), ("floor", floor)):
        for found in qualities:
            if not _can_be(found):
                raise ValueError(f"{place}: no pictures have this quality: {found}")


def _can_be(found: PictureQuality) -> bool:
    """Return whether two pictures of 8 bits can differ so: by 0 dB at the most."""
    decibels = found.psnr_db == math.inf or -0.001 <= found.psnr_db <= _MOST_DECIBELS
    flip = found.flip is None or -0.001 <= found.flip <= 1.001
    return decibels and flip and -1.001 <= found.ssim <= 1.001


def _check_workload(workload: Workload) -> None:
    counts = {"steps": workload.steps, "repeats": workload.repeats}
    for name, value in (*counts.items(), *(("size", side) for side in workload.size)):
        if not 1 <= value <= _LARGEST_SIDE:
            raise ValueError(f"workload.{name} must be from 1 to {_LARGEST_SIDE}, not {value}")
    if workload.frames is not None and not 1 <= workload.frames <= MOST_FRAMES:
        raise ValueError(f"workload.frames must be from 1 to {MOST_FRAMES}, not {workload.frames}")
    if any(seed < 0 for seed in workload.seeds):
        raise ValueError(f"workload.seeds must be 0 or more, not {min(workload.seeds)}")
    for name, values in (("prompts", workload.prompts), ("seeds", workload.seeds)):
        _check_once(f"workload.{name}", values)
    if workload.guidance is not None and not math.isfinite(workload.guidance):
        raise ValueError(f"workload.guidance must be a finite number, not {workload.guidance}")


def _check_once(place: str, values: Iterable[object]) -> None:
    values = list(values)
    if len(set(values)) < len(values):
        raise ValueError(f"{place} names one of them twice")


def _figures(trials: tuple[Trial, ...]) -> Iterator[tuple[str, float | None]]:
    """Yield every figure of every trial, by name, that is a number of bytes or seconds."""
    for trial in trials:
        for name in (
            "weight_bytes",
            "predicted_weight_bytes",
            "file_bytes",
            "peak_bytes",
            "private_bytes",
            "reserved_bytes",
            "load_peak_bytes",
            "free_before_bytes",
            "load_seconds",
            "compile_seconds",
        ):
            yield f"{trial.label}: {name}", getattr(trial, name)
        timing = trial.timing
        if timing is not None:
            yield f"{trial.label}: timing.other_load", timing.other_load
            yield f"{trial.label}: timing.other_bytes", timing.other_bytes
            for seconds in (*timing.samples, *timing.warmup):
                yield f"{trial.label}: a timing", seconds
