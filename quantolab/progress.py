"""A comparison's events as a bar on a terminal, or a line a trial where there is none."""

from __future__ import annotations

import statistics
from shutil import get_terminal_size

from tqdm.auto import tqdm

from .measure.quality import mean_decibels
from .run.session import Progress
from .telling import has_bars, say_line
from .units import format_bytes, format_decibels, format_seconds


class ProgressBar:
    """Shows the events it is called with on standard error (or in a notebook).

    Parameters
    ----------
    unit : str
        What is counted, in the plural.
    """

    def __init__(self, unit: str = "pictures") -> None:
        self._unit = unit
        self._plain = not has_bars()
        self._bar: tqdm | None = None
        self._silent = False

    def __call__(self, progress: Progress) -> None:
        """Show one event."""
        try:
            self._show(progress)
        except OSError:  # nobody reads it any more, or the terminal was closed: the work goes on
            self._silent = True

    def _show(self, progress: Progress) -> None:
        if self._silent:
            return
        if progress.trial is not None:
            say_line(_trial_line(progress.trial), self._bar)
        if self._plain:
            return
        if self._bar is None:
            form = _BAR.format(words=_WORDS, unit=self._unit)
            self._bar = tqdm(total=progress.total, leave=False, bar_format=form, smoothing=0)
        self._bar.total = progress.total  # it may become known only on the way
        rest = "" if progress.eta_seconds is None else format_seconds(progress.eta_seconds)
        what = progress.says if progress.label is None else f"{progress.label}: {progress.says}"
        room = _WORDS
        if progress.doing:  # as many as there is room for
            what = " | ".join(said.removeprefix("worker ") for said in progress.says.split("; "))
            room = max(_WORDS, min(len(what), get_terminal_size().columns - _BESIDE_WORDS))
            if len(what) > room:  # a number cut in two would be another
                what = f"{what[: room - 1]}…"
        self._bar.bar_format = _BAR.format(words=room, unit=self._unit)
        self._bar.set_description_str(what, refresh=False)
        self._bar.set_postfix_str(f"{rest} to go" if rest else "", refresh=False)
        self._bar.n = progress.done
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        try:
            if self._bar is not None:
                self._bar.close()
        except OSError:
            pass


_WORDS = 32
"""Letters for what goes on."""
_BESIDE_WORDS = 46
"""Letters that the bar, counts and seconds want where several workers are told of."""
_BAR = "{{desc:<{words}.{words}}} |{{bar}}| {{n_fmt}}/{{total_fmt}} {unit}  {{postfix}}"


def _trial_line(trial) -> str:
    if not trial.ok:
        return f"{trial.label}: {trial.status}, {trial.reason}"
    parts = [f"{trial.label}: {format_bytes(trial.weight_bytes)}"]
    if trial.timing is not None and trial.timing.samples:
        parts.append(f"{format_seconds(statistics.median(trial.timing.samples))} a picture")
    if trial.quality:
        decibels = mean_decibels([q.psnr_db for q in trial.quality])
        parts.append(f"PSNR {format_decibels(decibels)}")
    return ", ".join(parts)
