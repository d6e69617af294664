"""What a comparison will cost, before it is begun: pictures, bytes, whether they fit, seconds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from ..devices import free_bytes
from ..errors import Cancelled, QuantolabError
from ..recipes import Recipe, default_recipes
from ..records import Comparison, Trial
from ..report.markup import Raw, bar, escaped, note, table
from ..run.asked import Request
from ..run.doubts import doubts
from ..run.engine import pictures_each
from ..run.jobs import PlanJob
from ..run.journal import read_run
from ..run.preloads import preload_of
from ..units import format_bytes, format_count, format_ratio, format_roughly
from .background import Assistant
from .kinds import LOOK_AHEAD
from .latest import Latest
from .recent import recent_runs

_DELAY_SECONDS = 0.3  # typing goes on: no process is asked for each key
_TIGHT = 0.8
"""Share of the free memory from which weights leave little for everything else."""


# --- what is known before --------------------------------------------------------------------


@dataclass(frozen=True)
class Prospect:
    """What a child found out about a model and a device, from shapes alone."""

    device: str
    device_name: str
    free_bytes: int | None
    """Free memory of the device; None where it doesn't say."""
    weight_bytes: dict[str, int]
    """Predicted bytes by recipe label."""


@dataclass(frozen=True)
class Estimate:
    """What a request will cost; fields are None as long as they aren't known."""

    request: Request
    prospect: Prospect | None = None
    seconds: float | None = None
    judged_by: str | None = None
    """Folder of the run that the seconds are judged by."""

    @property
    def compared(self) -> int:
        """Pictures to look at."""
        return len(self.request.workload.pairs) * len(self.request.trials)

    @property
    def timed(self) -> int:
        """Pictures made again for their seconds alone."""
        return self.request.workload.repeats * len(self.request.trials)

    def fits(self, recipe: Recipe) -> bool | None:
        """Return whether a recipe's weights fit into the free memory; None if that isn't known."""
        need, free = self._need(recipe), self.prospect and self.prospect.free_bytes
        return None if need is None or free is None else need <= free

    def is_tight(self, recipe: Recipe) -> bool:
        """Return whether they fit, with little left for pictures and the model's other parts."""
        return bool(self.fits(recipe)) and self._need(recipe) > _TIGHT * self.prospect.free_bytes

    def _need(self, recipe: Recipe) -> int | None:
        return None if self.prospect is None else self.prospect.weight_bytes.get(recipe.label)


def judged_seconds(
    request: Request, machine: str, earlier: Iterable[Comparison]
) -> tuple[float, str | None] | None:
    """Return about how long a request will take, and the folder of the run that says so.

    Judged by the first of the earlier runs of the same model on the same machine, at the same size,
    frames, guidance and compute dtype: its seconds a picture, in proportion to the steps, and the
    time that it spent on everything else. None if there is no such run. A recipe that it doesn't
    have is taken for as slow as its slowest one; a compiled one without a compiled twin can't be
    judged.

    Parameters
    ----------
    request : Request
        What is asked for, its device resolved.
    machine : str
        Name of the device, as conditions record it.
    earlier : iterable of Comparison
        The latest first.
    """
    for run in earlier:
        seconds = _judged_by(request, machine, run)
        if seconds is not None:
            return seconds, run.folder
    return None


def _judged_by(request: Request, machine: str, run: Comparison) -> float | None:
    ours, theirs = request.workload, run.workload
    same = ("model", "size", "frames", "dtype", "device", "guidance")
    measured = [
        t for t in run.trials
        if t.timing and t.timing.samples and t.conditions and t.conditions.device_name == machine
    ]  # fmt: skip
    if not measured or any(getattr(ours, name) != getattr(theirs, name) for name in same):
        return None
    by_label = {trial.label: trial for trial in measured}
    eager = [trial for trial in measured if not trial.compiled]
    slowest = max(eager, key=_picture_seconds, default=None)
    total = 0.0
    for trial in request.trials:
        like = by_label.get(trial.label) or (None if trial.compiled else slowest)
        if like is None:
            return None
        each = _picture_seconds(like) * ours.steps / theirs.steps
        once = (like.load_seconds or 0.0) + (like.compile_seconds or 0.0)
        total += once + each * pictures_each(request)
    return total + _other_seconds(run, measured) * len(request.trials) / len(measured)


def _picture_seconds(trial: Trial) -> float:
    return statistics.median(trial.timing.samples)


def _other_seconds(run: Comparison, measured: list[Trial]) -> float:
    """Seconds of a run that were neither loading nor pictures: imports, prompts, tables."""
    spent = math.fsum((t.load_seconds or 0.0) + t.timing.total for t in measured)
    return max(0.0, (run.wall_seconds or 0.0) - spent)


# --- finding it out --------------------------------------------------------------------------


class Estimator:
    """Estimates what a form asks for, in the background, the newest state only.

    Parameters
    ----------
    assistant : Assistant
        The process that reads shapes.
    """

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self._latest = Latest()
        self._given_up = Event()
        self._known: dict[tuple, Prospect] = {}
        self.own: tuple[Comparison, ...] = ()
        """Runs of this panel, the latest first."""

    def ask(
        self,
        request: Request,
        *,
        show: Callable[[Estimate], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Call `show`, now with what is known at once, and again in a thread with all of it."""
        self.stop()
        show(Estimate(request))
        given_up = self._given_up = Event()
        self._latest.start(
            lambda: self._estimate(request, given_up),
            done=show,
            failed=lambda error: None if isinstance(error, Cancelled) else failed(error),
        )

    def stop(self) -> None:
        """Give up what is being estimated."""
        self._given_up.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the newest estimate is there; whether that came true in time."""
        return self._latest.wait(timeout)

    def _estimate(self, request: Request, given_up: Event) -> Estimate:
        prospect = self._prospect(request, given_up)
        if prospect.device == "cpu":  # asked anew: that takes no process
            prospect = dataclasses.replace(prospect, free_bytes=free_bytes("cpu"))
        workload = dataclasses.replace(request.workload, device=prospect.device)
        resolved = dataclasses.replace(request, workload=workload)
        judged = judged_seconds(resolved, prospect.device_name, self._earlier())
        return Estimate(request, prospect, *(judged or ()))

    def _prospect(self, request: Request, given_up: Event) -> Prospect:
        source, workload = request.source, request.workload
        recipes = _asked_ahead(request)
        key = (
            source.folder, workload.dtype, workload.device, request.components, recipes,
            workload.lora,
        )  # fmt: skip
        if key not in self._known:
            if given_up.wait(_DELAY_SECONDS):
                raise Cancelled("something newer is asked for")
            asked = PlanJob(
                source, workload.device, workload.dtype, request.components, recipes,
                lora=request.lora,
            )  # fmt: skip
            found = self._assistant.do(
                LOOK_AHEAD, asked, preload=preload_of(source), cancel=given_up
            )
            plans = zip(recipes, found.planned.plans, strict=True)
            self._known[key] = Prospect(
                found.planned.device,
                found.device_name,
                found.free_bytes,
                {recipe.label: plan.predicted_weight_bytes for recipe, plan in plans},
            )
        return self._known[key]

    def _earlier(self) -> Iterable[Comparison]:
        yield from self.own
        for folder in recent_runs():
            try:
                yield read_run(folder)
            except QuantolabError:
                continue  # half a run, or one of a later version


def _asked_ahead(request: Request) -> tuple[Recipe, ...]:
    """Return the recipes to look at: all dtypes at once, so that marking one more costs nothing."""
    quantized = next((r for r in request.recipes if not r.is_reference), None)
    ahead = (
        default_recipes(skip=quantized.skip, components=quantized.components) if quantized else ()
    )
    return tuple(sorted({*ahead, *request.recipes}, key=lambda recipe: recipe.label))


# --- as text ---------------------------------------------------------------------------------


def estimate_html(estimate: Estimate, *, reading: bool = True) -> str:
    """Return an estimate as HTML: sentences, and a bar for each recipe's bytes.

    Parameters
    ----------
    estimate : Estimate
        As far as it is known.
    reading : bool
        Whether what isn't known yet is being found out.
    """
    said = "".join(map(_doubt, doubts(estimate.request))) + note(pictures_sentence(estimate))
    if estimate.prospect is None:
        return said + (note("Reading the shapes of the model for its bytes…") if reading else "")
    return (
        said + note(time_sentence(estimate)) + note(fit_sentence(estimate)) + _bytes_table(estimate)
    )


def _doubt(sentence: str) -> str:
    return f"<div class='ql-doubt' role='status'>{escaped(sentence)}</div>"


def pictures_sentence(estimate: Estimate) -> str:
    """Return how much will be made."""
    trials = format_count(len(estimate.request.trials), "trial")
    compared = format_count(estimate.compared, "picture")
    return f"{trials}: {compared} to compare and {estimate.timed} more for the timing."


def time_sentence(estimate: Estimate) -> str:
    """Return how long it will take, if anything was measured to judge by."""
    if estimate.seconds is not None:
        by = Path(estimate.judged_by).name if estimate.judged_by else "an earlier run"
        return f"Time: {format_roughly(estimate.seconds)}, judged by {by}."
    return "Time: the first trial will tell; no run of this kind was measured here before."


def fit_sentence(estimate: Estimate) -> str:
    """Return whether it fits into memory."""
    prospect = estimate.prospect
    if prospect.free_bytes is None:
        return f"Memory: {prospect.device_name} doesn't say how much of it is free."
    free = f"{format_bytes(prospect.free_bytes)} free on {prospect.device_name}"
    recipes = estimate.request.recipes
    too_large = [r.label for r in recipes if estimate.fits(r) is False]
    tight = [r.label for r in recipes if estimate.is_tight(r)]
    if too_large:
        return f"Memory: {', '.join(too_large)} doesn't fit into the {free}."
    if tight:
        return f"Memory: {', '.join(tight)} would leave little of the {free}."
    return f"Memory: fits; {free}."


def _bytes_table(estimate: Estimate) -> str:
    needs = estimate.prospect.weight_bytes
    largest = max((needs[r.label] for r in estimate.request.recipes), default=1)
    reference = needs.get("none")
    rows = []
    for recipe in estimate.request.recipes:
        need = needs[recipe.label]
        verdict = "" if estimate.fits(recipe) is not False else Raw("<b>does not fit</b>")
        text = f"{recipe.label}: {format_bytes(need)}"
        rows.append((
            recipe.label, bar(((need / largest, _COLOUR),), text), format_bytes(need),
            format_ratio(need / reference) if reference else "", verdict,
        ))  # fmt: skip
    headers = ("recipe", "", "weights", "of none", "")
    caption = "Predicted from shapes; no weight is read"
    return table(headers, rows, align="llrrl", caption=caption, css="ql-predicted")


_COLOUR = "#4c86c6"
