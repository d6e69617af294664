"""`compile_report`: which recipes torch.compile takes, in which ways, and whether it pays."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Seconds, public
from ..errors import ArgumentError, Cancelled, QuantolabError, UnsupportedError, one_of
from ..files.whole import scratch_folder
from ..hub.watching import watching
from ..measure.ratios import paired_ratio
from ..measure.statistics import median_interval
from ..models.source import size_step
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe, weights_only
from ..records import FAILED, OK, UNSUPPORTED
from ..report.compiled import NEVER, break_even, break_even_range
from ..run import REPEATS, torch_compile
from ..run.asked import Request, check_request
from ..run.session import Session, Watch
from ..weights import REFERENCE
from .jobs import CompileFound, CompileJob
from .kinds import COMPILE
from .opening import watched

if TYPE_CHECKING:
    import pandas

__all__ = ["NEVER", "WAYS", "break_even", "compile_report", "report_of"]

WAYS = tuple(torch_compile.WAYS)
"""Ways of compiling a denoiser."""

_COLUMNS = (
    "recipe", "way", "status", "reason",
    "graphs", "graph_breaks", "recompilations", "compile_seconds",
    "eager_seconds", "eager_low_seconds", "eager_high_seconds",
    "compiled_seconds", "compiled_low_seconds", "compiled_high_seconds",
    "speedup", "speedup_low", "speedup_high", "verdict", "speedup_reference", "difference",
    "break_even_low_images", "break_even_high_images", "break_even_images",
    "eager_samples", "compiled_samples",
    "model", "device", "device_name", "threads", "compute_dtype", "steps", "size", "repeats",
    "torch", "diffusers", "quanto", "name",
)  # fmt: skip
_CONDITIONS = ("device_name", "threads", "torch", "diffusers", "quanto")


@public
def compile_report(
    model: str | os.PathLike | None = None,
    recipes: Iterable[Recipe | str] | Recipe | str | None = None,
    prompts: Iterable[str] | str | None = None,
    *,
    ways: Iterable[str] | str = WAYS[:1],
    seeds: Iterable[int] | int = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    other_size: tuple[int, int] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = REPEATS,
    watch: Watch | None = None,
    on_row: Callable[[dict], None] = lambda row: None,
    cancel: threading.Event | None = None,
    stall_seconds: Seconds = STALL_SECONDS,
    variant: str | None = None,
    revision: str | None = None,
    frames: int | None = None,
) -> pandas.DataFrame:
    """Return one row a recipe and way of compiling: whether it compiles, its cost and its gain.

    Each cell runs in a process of its own, without caches of earlier ones. Eager and compiled
    pictures of the same prompt and seed alternate in it.

    Parameters
    ----------
    model, recipes, prompts, seeds, steps, guidance, size, dtype, device, repeats
        As for `compare`; the first prompt and seed are pictured.
    ways : iterable of str
        ``"default"``, ``"fullgraph"`` (one graph or an error), ``"max-autotune"``,
        ``"dynamic"`` (shapes left open), ``"repeated-blocks"`` (one block, used many times). By
        default the first alone: each cell compiles twice, for two sizes, a minute in all for the
        demo model on two cores.
    other_size : (int, int), optional
        A second size, to count what a change of size compiles anew; half the width by default
        if the model can make it.
    watch, cancel, stall_seconds
        As for `compare`.
    on_row : callable
        Called with each row as soon as it is there; `report_of` makes the report of some rows.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.
    frames : int, optional
        Of each video, as for `compare`.

    Returns
    -------
    pandas.DataFrame
        ``recipe, way, status, reason``, and ``name``, the recipe's short one; ``graphs,
        graph_breaks, recompilations`` (graphs that another size adds);
        ``compile_seconds`` (the first call less a steady one);
        ``eager_seconds, compiled_seconds`` (medians of one picture, with ``_low`` and ``_high``
        of their 95 % intervals); ``speedup`` (eager over compiled, from pictures made in turn, with
        ``_low`` and ``_high``) and its ``verdict``; ``speedup_reference``
        (compiled reference over compiled recipe, the same way); ``difference`` (of the
        denoiser's output from eager, relative norm); ``break_even_images`` (after how many
        pictures the compile time is paid back; infinite if compiled is not faster) with
        ``break_even_low_images`` and ``break_even_high_images``; raw
        ``eager_samples, compiled_samples``; and the conditions.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If the request can't be run.

    Examples
    --------
    >>> report = compile_report("demo", ["none", "int8"], ways=["fullgraph"])
    >>> report[["recipe", "status", "compile_seconds", "break_even_images"]]
    """
    chosen = tuple(
        one_of("way of compiling", way, WAYS)
        for way in ((ways,) if isinstance(ways, str) else ways)
    )
    if not chosen:
        raise ArgumentError(f"ways is empty; allowed: {', '.join(WAYS)}")
    with watching(cancel=cancel):
        request = check_request(
            model,
            recipes,
            prompts,
            seeds=seeds,
            steps=steps,
            guidance=guidance,
            size=size,
            dtype=dtype,
            device=device,
            repeats=repeats,
            variant=variant,
            revision=revision,
            frames=frames,
        )
    weights_only(request.recipes, "compile_report")
    if other_size is None:
        other_size = _other_size(request)
    with watched(watch) as watch:
        session = Session(
            request,
            total=_pictures_each(request) * len(request.recipes) * len(chosen),
            watch=watch,
            cancel=cancel,
            stall_seconds=stall_seconds,
        )
        with session, scratch_folder("compile") as work:
            rows = _rows(session, chosen, other_size, work, on_row)
    return report_of(rows)


def report_of(rows: Iterable[dict]) -> pandas.DataFrame:
    """Return the report that rows make, also when some are still missing."""
    import pandas as pd

    from ..report.compile_frame import CompileFrame

    return CompileFrame(_against_reference(pd.DataFrame(list(rows), columns=_COLUMNS)))


def _rows(
    session: Session,
    ways: tuple[str, ...],
    other_size: tuple[int, int] | None,
    work: Path,
    on_row: Callable[[dict], None],
) -> list[dict]:
    session.plan()
    encoded = session.encode(work)
    rows, each = [], _pictures_each(session.request)
    for recipe in session.request.recipes:
        for way in ways:
            session.enter_stage("loading", f"{recipe.shown}, {way}")
            asked = CompileJob(session.trial_job(recipe, encoded), way, other_size)
            rows.append(_row(session, asked, work / f"cell-{len(rows)}"))
            on_row(rows[-1])
            session.done = each * len(rows)
            session.tell()
    return rows


def _row(session: Session, asked: CompileJob, folder: Path) -> dict:
    workload = session.request.workload
    row = {
        "recipe": asked.trial.recipe.label,
        "name": asked.trial.recipe.name,
        "way": asked.way,
        "model": workload.model,
        "device": workload.device,
        "compute_dtype": workload.dtype,
        "steps": workload.steps,
        "size": "x".join(map(str, workload.size)),
        "repeats": workload.repeats,
    }
    try:
        found = session.job(COMPILE, asked, folder)
    except Cancelled:
        raise
    except QuantolabError as error:
        status = UNSUPPORTED if isinstance(error, UnsupportedError) else FAILED
        return {**row, "status": status, "reason": str(error)}
    eager, compiled = _latency(found.eager_samples), _latency(found.compiled_samples)
    pays = break_even(found.compile_seconds, eager["_seconds"], compiled["_seconds"])
    return {
        **row,
        "status": OK,
        "graphs": found.graphs,
        "graph_breaks": found.graph_breaks,
        "recompilations": found.recompilations,
        "compile_seconds": found.compile_seconds,
        "difference": found.difference,
        "eager_samples": found.eager_samples,
        "compiled_samples": found.compiled_samples,
        **{f"eager{name}": value for name, value in eager.items()},
        **{f"compiled{name}": value for name, value in compiled.items()},
        **_ratio_cells(found),
        "break_even_images": pays,
        **{name: getattr(found.conditions, name) for name in _CONDITIONS},
    }


def _ratio_cells(found: CompileFound) -> dict[str, Any]:
    """Return what eager and compiled pictures show that were made in turn."""
    ratio = paired_ratio(found.eager_samples, found.compiled_samples)
    low, high = break_even_range(ratio, found.compile_seconds, found.eager_samples)
    return {
        "speedup": 1 / ratio.middle,
        "speedup_low": None if ratio.high is None else 1 / ratio.high,
        "speedup_high": None if ratio.low is None else 1 / ratio.low,
        "verdict": ratio.verdict,
        "break_even_low_images": low,
        "break_even_high_images": high,
    }


def _latency(samples: tuple[float, ...]) -> dict[str, float | None]:
    """Return the ends of three columns' names, with the median and its interval in seconds."""
    low, high = median_interval(samples) or (None, None)
    return {"_seconds": statistics.median(samples), "_low_seconds": low, "_high_seconds": high}


def _against_reference(table: pandas.DataFrame) -> pandas.DataFrame:
    """Fill `speedup_reference`: the compiled reference's latency over the recipe's, way by way."""
    reference = table[(table["recipe"] == REFERENCE) & (table["status"] == OK)]
    latency = dict(zip(reference["way"], reference["compiled_seconds"], strict=True))
    table["speedup_reference"] = [
        latency[way] / seconds if way in latency and status == OK else None
        for way, seconds, status in zip(
            table["way"], table["compiled_seconds"], table["status"], strict=True
        )
    ]
    return table


def _pictures_each(request: Request) -> int:
    """Pictures that a cell makes: the eager first, the compiled first, pairs, another size."""
    return 3 + 2 * request.workload.repeats


def _other_size(request: Request) -> tuple[int, int] | None:
    """Return half the width, rounded to what the model can make; None if that is the same."""
    step = size_step(request.source)
    width, height = request.workload.size
    half = max(step, width // 2 // step * step)
    return (half, height) if half != width else None
