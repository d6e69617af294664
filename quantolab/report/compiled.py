"""Rows of a compile report in words: what each shows, and when compiling pays."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.ratios import FASTER, SLOWER, Ratio, paired_ratio, verdict_words
from ..measure.statistics import LEAST_SAMPLES
from ..records import OK
from ..units import ABSENT, format_count, format_interval, format_ratio, format_seconds

HEADERS = (
    "recipe", "way", "status", "graphs", "breaks", "new size adds", "compiling",
    "eager picture", "compiled picture", "compiled is", "pays",
)  # fmt: skip

ALIGN = "lllrrrrrrll"

Row = Mapping[str, Any]

NEVER = math.inf
"""Break-even of a compiled model that isn't faster."""


def name(row: Row) -> str:
    """Return what a row is called: recipe, by its short name if it has one, and way."""
    return f"{heading(row)}, {row['way']}"


def heading(row: Row) -> str:
    """Return the recipe's short name, or its text."""
    own = row.get("name")
    return own if isinstance(own, str) and own else str(row["recipe"])


def cells(row: Row) -> tuple[str, ...]:
    """Return one text for each of the `HEADERS`; a row without figures has dashes."""
    first = (heading(row), row["way"], row["status"])
    if row["status"] != OK:
        return (*first, *[ABSENT] * (len(HEADERS) - len(first)))
    added = row["recompilations"]
    return (
        *first,
        str(row["graphs"]),
        str(row["graph_breaks"]),
        ABSENT if added is None else format_count(added, "graph"),
        format_seconds(row["compile_seconds"]),
        _interval(row, "eager"),
        _interval(row, "compiled"),
        speed(row) or f"{format_ratio(row['speedup'])} as fast",
        payback_words(row),
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the sentences under the rows: what short names mean, reasons, then conditions."""
    named = {heading(row): row["recipe"] for row in rows if heading(row) != row["recipe"]}
    said = [f"{short}: {recipe}" for short, recipe in named.items()]
    said += [
        f"{name(row)} ({row['status']}): {row['reason']}" for row in rows if row["status"] != OK
    ]
    row = next((row for row in rows if row["status"] == OK), None)
    if row is None:
        return said
    said.append(
        f"{row['model']}, {format_count(row['steps'], 'step')}, {row['size']}, "
        f"{row['compute_dtype']}, {row['device_name']}, torch {row['torch']}, "
        f"diffusers {row['diffusers']}, optimum-quanto {row['quanto']}."
    )
    if row["repeats"] >= LEAST_SAMPLES:
        said.append(f"In brackets: 95 % interval of the median of {row['repeats']} pictures.")
    else:
        said.append(
            f"Too few repeats for intervals and verdicts on speed: {LEAST_SAMPLES} are needed."
        )
    return said


def speed(row: Row) -> str | None:
    """Return how much faster compiled is, ``"1.32x faster (1.28–1.37)"``; None for few repeats."""
    found = _ratio(row)
    return verdict_words(found.verdict, found.middle, found.low, found.high, found.more_rounds)


def pays(row: Row) -> bool:
    """Return whether the repeats show that compiled is faster, so that compiling pays some time."""
    return row["status"] == OK and _ratio(row).verdict == FASTER


def never_pays(row: Row) -> bool:
    """Return whether the repeats show that compiled is slower, so that compiling can't pay."""
    return row["status"] == OK and _ratio(row).verdict == SLOWER


def payback_words(row: Row) -> str:
    """Return when compiling has paid for itself: ``"after 38 pictures (52.1 s)"``."""
    if never_pays(row):
        return "never: it isn't faster"
    if not pays(row):
        return "not shown to"
    low, high = payback_range(row)
    if low < high:
        return f"after {low} to {format_count(high, 'picture')}"
    seconds = row["compile_seconds"] + row["break_even_images"] * row["compiled_seconds"]
    return f"after {format_count(low, 'picture')} ({format_seconds(seconds)})"


def payback_range(row: Row) -> tuple[int, int]:
    """Return after how many pictures compiling that `pays` has paid, at the least and the most."""
    low, high = break_even_range(_ratio(row), row["compile_seconds"], row["eager_samples"])
    if low is None or high is None or not low < high:
        low = high = row["break_even_images"]
    return round(low), round(high)


def break_even(compile_seconds: float, eager_seconds: float, compiled_seconds: float) -> float:
    """Return after how many pictures compiling has paid for itself; infinite if it never does.

    Compiling pays once ``compile + n * compiled <= n * eager``.
    """
    gain = eager_seconds - compiled_seconds
    return float(math.ceil(compile_seconds / gain)) if gain > 0 else NEVER


def break_even_range(
    ratio: Ratio, compile_seconds: float, eager_samples: Sequence[float]
) -> tuple[float | None, float | None]:
    """Return the break-even at both ends of the interval of compiled over eager; None without one.

    Infinite where compiled may be no faster.
    """
    if ratio.low is None or ratio.high is None:
        return None, None
    eager = statistics.median(eager_samples)
    low, high = (break_even(compile_seconds, eager, end * eager) for end in (ratio.low, ratio.high))
    return low, high


def _ratio(row: Row) -> Ratio:
    """Return compiled over eager, from pictures made in turn."""
    return _paired(tuple(row["eager_samples"]), tuple(row["compiled_samples"]))


@functools.lru_cache(maxsize=256)
def _paired(eager: tuple[float, ...], compiled: tuple[float, ...]) -> Ratio:
    return paired_ratio(eager, compiled)


def _interval(row: Row, way: str) -> str:
    return format_interval(*(row[f"{way}{part}_seconds"] for part in ("", "_low", "_high")))
