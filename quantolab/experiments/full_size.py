"""Steps of a denoiser at its true size, no download: ``python -m quantolab.full_size``.

Makes the table that a person with a GPU wants before downloading anything: bytes, memory peak and
seconds a step of FLUX.1-dev's transformer at 1024x1024, for the reference and each dtype, eager
and compiled, with random weights drawn on the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices import DEVICES
from ..errors import QuantolabError, UnsupportedError, one_of, whole_number
from ..files.whole import scratch_folder
from ..measure.statistics import median_interval
from ..models.source import find_model
from ..processes.children import Children
from ..processes.jobs import Event
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..records import FAILED, OK, UNSUPPORTED
from ..run.preloads import preload_of
from ..units import format_digits, format_percent
from ..weights import REFERENCE, WORDS
from .jobs import StepJob, Steps
from .kinds import STEPS

if TYPE_CHECKING:
    import pandas

_PACKED = 16  # pixels along one side of a packed latent of FLUX

_FACTS = (
    "weight_bytes", "predicted_weight_bytes",
    "fill_and_quantize_seconds", "fill_and_quantize_peak_bytes",
    "device", "device_name", "threads", "platform", "torch", "diffusers", "quanto", "peak_method",
)  # fmt: skip
_COLUMNS = (
    "model", "recipe", "compiled", "status", "reason",
    "weight_bytes", "predicted_weight_bytes", "peak_bytes", "reserved_bytes",
    "step_seconds", "step_low_seconds", "step_high_seconds", "repeats", "speedup",
    "compile_seconds", "difference",
    "fill_and_quantize_seconds", "fill_and_quantize_peak_bytes",
    "weight_classes", "kernels", "samples", "other_load",
    "size", "image_tokens", "text_tokens", "compute_dtype", "device",
    "device_name", "threads", "platform", "torch", "diffusers", "quanto", "peak_method",
)  # fmt: skip


def full_size_table(
    model: str = "black-forest-labs/FLUX.1-dev",
    recipes: Iterable[Recipe | str] = WORDS,
    *,
    size: tuple[int, int] = (1024, 1024),
    tokens: int = 512,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = 20,
    way: str | None = "default",
    tell=lambda text: None,
) -> pandas.DataFrame:
    """Return bytes and seconds a step of a FLUX transformer with random weights.

    Parameters
    ----------
    model : str
        A folder, a Hub id or a known model; only its configuration is read.
    recipes : iterable of Recipe or str
        Each is measured in a process of its own.
    size : (int, int)
        Width and height of the picture in pixels, equal; a token of the picture is 16x16 of them.
    tokens : int
        Length of the text.
    dtype, device, repeats
        As for `compare`; `repeats` counts single steps.
    way : str or None
        How to compile (see `compile_report`); None leaves compiling out.
    tell : callable
        Called with a line of progress now and then.

    Returns
    -------
    pandas.DataFrame
        A row a recipe, and one more for it compiled. ``speedup`` is against the eager reference;
        ``difference`` the compiled output's from eager, relative norm; ``kernels`` the
        longest-running ones of a step with their share of its time.

    Raises
    ------
    ArgumentError, UnsupportedError
        If the request can't be run.
    """
    import pandas as pd

    source = find_model(model, weights=False)
    part = source.component()
    if part.cls != "FluxTransformer2DModel":
        raise UnsupportedError(f"only FLUX is built at full size yet, not {part.cls}")
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    one_of("device", device.partition(":")[0], DEVICES)
    whole_number("repeats", repeats)
    if size[0] != size[1]:
        raise UnsupportedError(f"only square pictures are measured, not {size[0]}x{size[1]}")
    asked = StepJob(
        cls=part.cls,
        config=source.config(part.name),
        recipe=Recipe(REFERENCE),
        dtype=dtype,
        device=device,
        side=size[0] // _PACKED,
        tokens=whole_number("tokens", tokens),
        repeats=repeats,
        way=way,
    )
    rows = []
    with (
        Children(preload_of(source)) as children,
        scratch_folder("full_size") as work,
    ):
        for recipe in map(as_recipe, recipes):
            tell(f"{recipe.label}: drawing and quantizing the weights")
            own = dataclasses.replace(asked, recipe=recipe)
            rows += _rows(children, own, work / f"{len(rows)}", tell)
    base = {"model": model, "size": "{}x{}".format(*size), "compute_dtype": dtype}
    table = pd.DataFrame([{**base, **row} for row in rows], columns=_COLUMNS)
    return _with_speedup(table)


def _rows(children: Children, asked: StepJob, folder: Path, tell) -> list[dict]:
    label = asked.recipe.label
    row = {"recipe": label, "compiled": False, "device": asked.device}
    stages = []

    def watch(event: Event) -> None:
        if event.kind == "stage" and event.stage not in stages:
            stages.append(event.stage)
            tell(f"{label}: {event.stage}")

    try:
        found = children.run(STEPS, asked, folder=folder, watch=watch)
    except QuantolabError as error:
        status = UNSUPPORTED if isinstance(error, UnsupportedError) else FAILED
        return [{**row, "status": status, "reason": str(error)}]
    for record in (found.conditions, found):
        names = [f.name for f in dataclasses.fields(record)]
        row |= {name: getattr(record, name) for name in names if name in _FACTS}
    row |= {
        "image_tokens": asked.side**2,
        "text_tokens": asked.tokens,
        "repeats": asked.repeats,
        "weight_classes": ", ".join(f"{n} {c}" for c, n in found.weight_classes.items()),
    }
    rows = [{**row, **_figures(found.eager)}]
    if found.compiled is not None:
        rows.append({**row, "compiled": True, **_figures(found.compiled)})
    elif found.not_compiled is not None:
        rows.append({**row, "compiled": True, "status": FAILED, "reason": found.not_compiled})
    return rows


def _figures(steps: Steps) -> dict:
    """Return the columns that one way of running fills."""
    low, high = median_interval(steps.samples) or (None, None)
    median = statistics.median(steps.samples)
    figures = {
        "status": OK,
        "step_seconds": median,
        "step_low_seconds": low,
        "step_high_seconds": high,
        "samples": " ".join(format_digits(seconds, 6) for seconds in steps.samples),
        "kernels": "; ".join(
            f"{k.name} {format_percent(k.share, space='')} x{k.calls}" for k in steps.kernels
        ),
        "peak_bytes": steps.peak_bytes,
        "reserved_bytes": steps.reserved_bytes,
        "other_load": steps.other_load,
    }
    if steps.difference is not None:
        figures["difference"] = steps.difference
        figures["compile_seconds"] = max(0.0, steps.first_seconds - median)
    return figures


def _with_speedup(table: pandas.DataFrame) -> pandas.DataFrame:
    reference = table[(table.recipe == REFERENCE) & ~table.compiled & (table.status == OK)]
    if len(reference):
        table["speedup"] = reference.step_seconds.iloc[0] / table.step_seconds
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m quantolab.full_size",
        description="Bytes and seconds a step of a denoiser at full size, with random weights.",
    )
    add = parser.add_argument
    add("model", nargs="?", default="black-forest-labs/FLUX.1-dev", help="(default: %(default)s)")
    add("--weights", default=",".join(WORDS), help="(default: %(default)s)")
    add("--pixels", type=int, default=1024, help="width and height (default: %(default)s)")
    add("--tokens", type=int, default=512, help="of text (default: %(default)s)")
    add("--dtype", default="bfloat16", help="(default: %(default)s)")
    add("--device", default="auto", help="(default: %(default)s)")
    add("--repeats", type=int, default=20, help="timed steps (default: %(default)s)")
    add("--way", default="default", help="of compiling; 'none' to leave it out (%(default)s)")
    add("--csv", required=True, help="where the table goes")
    options = parser.parse_args(argv)
    try:
        table = full_size_table(
            options.model,
            options.weights.split(","),
            size=(options.pixels, options.pixels),
            tokens=options.tokens,
            dtype=options.dtype,
            device=options.device,
            repeats=options.repeats,
            way=None if options.way == "none" else options.way,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    except QuantolabError as error:
        print(f"quantolab: {error}", file=sys.stderr)
        return 2
    table.to_csv(options.csv, index=False)
    shown = ["recipe", "compiled", "status", "weight_bytes", "peak_bytes", "step_seconds"]
    print(table[[*shown, "speedup", "compile_seconds"]].to_string(index=False))
    print(f"table   {options.csv}")
    return 0 if (table.status == OK).all() else 1
