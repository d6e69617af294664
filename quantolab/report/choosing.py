"""Which of a comparison's recipes to take: one sentence with its reason, where the figures hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import units
from ..arguments import public
from ..errors import ArgumentError
from ..measure.ratios import FASTER, NO_DIFFERENCE, SLOWER
from ..records import OK, Comparison
from ..units import parse_bytes
from .markup import note
from .tables import held_bytes, plain_rows, reference_row, results_table

NEAR_FLOOR = 3.0
"""Times the noise floor up to which pictures changed hardly more than rounding changes them."""
NEAR_DECIBELS = 40.0
"""What stands for it in runs without a noise floor."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What `choose` advises."""

    recipe: str | None
    """Label of the recipe, as the table and the pictures have it; None if none is advised."""
    sentence: str
    """What is advised and why."""

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return note(self.sentence)


@public
def choose(
    comparison: Comparison,
    *,
    memory: str | int | None = None,
    psnr_db: float | None = None,
    fastest: bool = False,
) -> Choice:
    """Return which of a comparison's recipes to take, and why.

    Without a target: of the recipes whose pictures are near the unquantized ones (within 3 times
    the noise floor; 40 dB in runs without a floor) the one of fewest bytes. With a target: of those
    that meet it the fastest, if that is asked for, else for a given memory the one whose pictures
    are nearest, else the one of fewest bytes. Only measured figures count: a recipe without the
    figure that a target is about doesn't meet it.

    Parameters
    ----------
    comparison : Comparison
        What `compare` returned or `load_comparison` read.
    memory : str or int, optional
        The most that it may take while generating, as the table's memory says it: ``"12GB"``.
    psnr_db : float, optional
        The least decibels of its pictures against the unquantized ones.
    fastest : bool
        Whether seconds decide among those that meet the rest.

    Returns
    -------
    Choice
        ``.recipe`` (a label, or None) and ``.sentence``; it prints as the sentence.

    Raises
    ------
    ArgumentError
        If a target is no size or no number.

    Examples
    --------
    >>> print(choose(comparison))                               # doctest: +SKIP
    int8: 0.50x the bytes, 1.7 times the floor, 1.43x slower: take it unless seconds count more.
    >>> choose(comparison, memory="12GB", fastest=True).recipe  # doctest: +SKIP
    'int8'
    """
    most = None if memory is None else parse_bytes(memory)
    if psnr_db is not None and not math.isfinite(psnr_db):
        raise ArgumentError(f"psnr_db must be a number of decibels, not {psnr_db!r}")
    table = results_table(comparison)
    position, records = reference_row(table), plain_rows(table)
    reference = None if position is None else records[position]
    ended = [record for record in records if record["status"] == OK]
    if most is None and psnr_db is None and not fastest:
        return _plain_choice(ended, reference)
    return _aimed_choice(ended, reference, most, psnr_db, fastest)


# --- without a target -----------------------------------------------------------------------


def _plain_choice(records: list[Record], reference: Record | None) -> Choice:
    if reference is None or not reference["weight_bytes"]:
        return Choice(
            None, "Nothing is advised: no unquantized recipe ran here to weigh others against."
        )
    judged = [
        r for r in records
        if r is not reference and not r["compiled"] and r["psnr_db"] is not None
        and r["weight_bytes"] and r["weight_bytes"] < reference["weight_bytes"]
    ]  # fmt: skip
    if not judged:
        return Choice(None, "Nothing is advised: no quantized recipe ended with pictures.")
    near = [record for record in judged if _is_near(record)]
    if not near:
        best = max(judged, key=_nearness)
        within = (
            f"{units.format_multiple(NEAR_FLOOR)} the floor"
            if best.get("floor_multiple") is not None
            else units.format_decibels(NEAR_DECIBELS)
        )
        return Choice(
            None,
            f"Nothing is advised: no recipe's pictures stay within {within}. Nearest is "
            f"{_called(best)}: {_facts(best, reference)}.",
        )
    best = min(near, key=lambda record: (record["weight_bytes"], -_nearness(record)))
    return Choice(
        best["recipe"], f"{_called(best)}: {_facts(best, reference)}: take it{_unless(best)}."
    )


def _is_near(record: Record) -> bool:
    multiple = record.get("floor_multiple")
    return record["psnr_db"] >= NEAR_DECIBELS if multiple is None else multiple <= NEAR_FLOOR


def _nearness(record: Record) -> float:
    """Return decibels; of the reference infinitely many, and of what wasn't judged minus those."""
    if record["psnr_db"] is not None:
        return record["psnr_db"]
    return math.inf if _is_reference(record) else -math.inf


def _is_reference(record: Record) -> bool:
    return record["weights"] == "none" and not record["compiled"]


def _facts(record: Record, reference: Record) -> str:
    """Return bytes, quality and speed in words, as far as they were measured."""
    parts = [f"{units.format_ratio(record['weight_bytes'] / reference['weight_bytes'])} the bytes"]
    multiple = record.get("floor_multiple")
    if multiple is None:
        parts.append(units.format_decibels(record["psnr_db"]))
    else:
        parts.append(f"{units.format_multiple(multiple).removesuffix('x')} times the floor")
    parts.append(_speed(record))
    return ", ".join(parts)


def _speed(record: Record) -> str:
    verdict, speedup = record.get("verdict"), record["speedup"]
    if verdict == SLOWER:
        return f"{units.format_ratio(1 / speedup)} slower"
    if verdict == FASTER:
        return f"{units.format_ratio(speedup)} faster"
    return "no slower" if verdict == NO_DIFFERENCE else "no verdict on its speed"


def _unless(record: Record) -> str:
    verdict = record.get("verdict")
    if verdict == SLOWER:
        return " unless seconds count more than bytes"
    return "" if verdict in (FASTER, NO_DIFFERENCE) else " where bytes are what counts"


def _called(record: Record) -> str:
    return record.get("name") or record["recipe"]


# --- with one -------------------------------------------------------------------------------


def _memory(record: Record) -> float:
    """Return what a recipe takes while generating; infinite where that wasn't measured."""
    held = held_bytes(record)
    return math.inf if held is None else held


def _seconds(record: Record) -> float:
    seconds = record["latency_seconds"]
    return math.inf if seconds is None else seconds


def _aimed_choice(
    records: list[Record],
    reference: Record | None,
    most: int | None,
    least: float | None,
    fastest: bool,
) -> Choice:
    asked: list[tuple[str, Callable[[Record], bool]]] = []
    if most is not None:
        limit = most
        asked.append(
            (f"at most {units.format_bytes(most)} of memory", lambda r: _memory(r) <= limit)
        )
    if least is not None:
        floor = least
        asked.append((f"at least {units.format_decibels(least)}", lambda r: _nearness(r) >= floor))
    met = [record for record in records if all(holds(record) for _, holds in asked)]
    if fastest:
        met = [record for record in met if math.isfinite(_seconds(record))]
    wanted = units.format_list([said for said, _ in asked]) if asked else ""
    if not met:
        missed = _missed(records, most, least)
        return Choice(None, f"No recipe has {wanted or 'seconds that were measured'}{missed}.")
    best, why = _best(met, most, fastest)
    of = "the only recipe" if len(met) == 1 else f"{why} of {len(met)} recipes"
    said = f"{_called(best)}: {of}{f' with {wanted}' if wanted else ''}"
    said += f" ({_cost(best, reference, most, fastest)})"
    if fastest and len(met) > 1:
        said += _not_apart(best, met)
    return Choice(best["recipe"], f"{said}.")


def _best(met: list[Record], most: int | None, fastest: bool) -> tuple[Record, str]:
    if fastest:
        return min(met, key=lambda r: (_seconds(r), -_nearness(r))), "the fastest"
    if most is not None:
        best = max(met, key=lambda r: (_nearness(r), -_memory(r)))
        return best, "the nearest to the unquantized pictures"
    fewest = min(met, key=lambda r: (r["weight_bytes"] or math.inf, -_nearness(r)))
    return fewest, "the one of fewest bytes"


def _not_apart(best: Record, met: list[Record]) -> str:
    """Say whose seconds can't be told from the fastest one's: their intervals overlap."""
    high = best["latency_high_seconds"]
    doubtful = [
        _called(r) for r in met
        if r is not best and (
            high is None or r["latency_low_seconds"] is None or r["latency_low_seconds"] <= high
        )
    ]  # fmt: skip
    if not doubtful:
        return ""
    return f"; the seconds of {units.format_list(doubtful)} aren't told apart from its own"


def _cost(record: Record, reference: Record | None, most: int | None, fastest: bool) -> str:
    """Return its own figures of what was aimed at, and what else it costs."""
    parts = [f"{units.format_bytes(record['weight_bytes'])} of weights"]
    if most is not None:
        parts = [f"{units.format_bytes(held_bytes(record))} of memory"]
    if fastest:
        parts.append(f"{units.format_seconds(record['latency_seconds'])} a picture")
    if record is reference:
        parts.append("unquantized")
    elif record["psnr_db"] is not None:
        parts.append(units.format_decibels(record["psnr_db"]))
    if not fastest and record.get("verdict"):
        parts.append(_speed(record))
    return ", ".join(parts)


def _missed(records: list[Record], most: int | None, least: float | None) -> str:
    """Say how near any of them comes."""
    parts = []
    measured = [r for r in records if math.isfinite(_memory(r))]
    if most is not None and measured:
        smallest = min(measured, key=_memory)
        memory = units.format_bytes(held_bytes(smallest))
        parts.append(f"the least memory is {memory} ({_called(smallest)})")
    judged = [r for r in records if r["psnr_db"] is not None]
    if least is not None and judged:
        nearest = max(judged, key=_nearness)
        decibels = units.format_decibels(nearest["psnr_db"])
        parts.append(f"the nearest quantized is {_called(nearest)} at {decibels}")
    return f"; {units.format_list(parts)}" if parts else ""
