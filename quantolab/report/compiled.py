"""Rows of a compile report in words: what each shows, and when compiling pays."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.statistics import LEAST_SAMPLES, verdict
from ..records import OK, Timing
from ..units import ABSENT, format_count, format_interval, format_ratio, format_seconds

HEADERS = (
    "recipe", "way", "status", "graphs", "breaks", "new size adds", "compiling",
    "eager picture", "compiled picture", "compiled is", "pays",
)  # fmt: skip

Row = Mapping[str, Any]


def name(row: Row) -> str:
    """Return what a row is called: recipe and way."""
    return f"{row['recipe']}, {row['way']}"


def cells(row: Row) -> tuple[str, ...]:
    """Return one text for each of the `HEADERS`; a row without figures has dashes."""
    first = (row["recipe"], row["way"], row["status"])
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
    """Return the sentences that belong under the rows: reasons, then conditions."""
    said = [
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
    """Return whether compiled is faster, ``"1.32x faster"``; None where repeats are too few."""
    return _verdict(tuple(row["eager_samples"]), tuple(row["compiled_samples"]))


def pays(row: Row) -> bool:
    """Return whether the repeats show that compiled is faster, so that compiling pays some time."""
    return row["status"] == OK and (speed(row) or "").endswith("faster")


def never_pays(row: Row) -> bool:
    """Return whether the repeats show that compiled is slower, so that compiling can't pay."""
    return row["status"] == OK and (speed(row) or "").endswith("slower")


def payback_words(row: Row) -> str:
    """Return when compiling has paid for itself: ``"after 38 pictures (52.1 s)"``."""
    if never_pays(row):
        return "never: it isn't faster"
    if not pays(row):
        return "not shown to"
    count = row["break_even_images"]
    seconds = row["compile_seconds"] + count * row["compiled_seconds"]
    return f"after {format_count(round(count), 'picture')} ({format_seconds(seconds)})"


@functools.lru_cache(maxsize=256)  # an interval takes thousands of resamplings
def _verdict(eager: tuple[float, ...], compiled: tuple[float, ...]) -> str | None:
    return verdict(Timing(eager), Timing(compiled))


def _interval(row: Row, way: str) -> str:
    return format_interval(*(row[f"{way}{part}_seconds"] for part in ("", "_low", "_high")))
