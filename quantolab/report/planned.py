"""A plan as people read it: bytes by part and dtype, and what fits into a budget."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..planning.needs import CONTEXT_BYTES
from ..planning.plan import PIPELINE
from ..text_tables import text_columns
from ..units import ABSENT, format_bytes, format_count, format_list
from ..weights import REFERENCE

if TYPE_CHECKING:
    import pandas

NOT_COUNTED = "Not counted: activations, the accelerator's own context, and whatever else is on it."
COUNTED = (
    "Making pictures counts the denoiser and the VAE, {context} of the accelerator's own context, "
    "and activations by arithmetic, not measured; whatever else is on the card comes on top."
)

_WAYS = (
    ("tiled_bytes", "with a tiled VAE"),
    ("model_offload_bytes", "with --offload model"),
    ("group_offload_bytes", "with --offload group"),
    ("sequential_offload_bytes", "with --offload sequential"),
)
"""Ways that take less, the mildest first."""


def plan_text(table: pandas.DataFrame, *, width: int = 100) -> str:
    """Return a plan for the terminal: a line a part, a column a recipe, then what fits.

    Parameters
    ----------
    table : pandas.DataFrame
        From `plan`.
    width : int
        Characters that sentences may take.
    """
    recipes = list(dict.fromkeys(table["recipe"]))
    rows = [("component", *recipes)]
    for name, part in table.groupby("component", sort=False):
        rows.append((_title(name, part), *_cells(part, recipes, "weight_bytes")))
    whole = table[table["component"] == PIPELINE]
    last = whole if len(whole) else table
    rows.append(("while loading, on a CPU", *_cells(last, recipes, "load_peak_bytes")))
    if _is_counted(whole):
        size = _made(whole)
        for title, column in (
            ("encoding prompts, on a card", "encode_bytes"),
            (f"making {size}, on a card", "resident_bytes"),
            ("the same, one part at a time", "model_offload_bytes"),
        ):
            rows.append((title, *_cells(whole, recipes, column)))
    first = table.iloc[0]
    said = [
        f"{first['model']} in {first['compute_dtype']}: bytes of the weights, predicted from its "
        "configuration; no weights were read."
    ]
    lines = [*_wrapped(said, width), "", *text_columns(rows, "l" + "r" * len(recipes), rule=True)]
    lines += ["", *_wrapped(fit_sentences(table), width)]
    return "\n".join(lines).rstrip() + "\n"


def fit_sentences(table: pandas.DataFrame) -> list[str]:
    """Return what fits into the plan's budget, and what isn't counted."""
    sentences = []
    budget = table.attrs["vram"]
    whole = table[table["component"] == PIPELINE]
    counted = _is_counted(whole)
    if budget is not None:
        sentences += _on_a_card(whole, budget) if counted else [_alone(table, budget)]
        sentences += _together(table, budget)
    sentences.append(
        COUNTED.format(context=format_bytes(CONTEXT_BYTES)) if counted else NOT_COUNTED
    )
    if table.attrs["not_counted"]:
        names = ", ".join(table.attrs["not_counted"])
        sentences.append(f"Not counted either, since their class is unknown here: {names}.")
    if table.attrs.get("variants"):
        sentences.append(table.attrs["variants"])
    return sentences


def _is_counted(whole: pandas.DataFrame) -> bool:
    """Whether what a comparison takes is known for every recipe."""
    return len(whole) > 0 and bool(whole["compare_bytes"].notna().all())


def _made(whole: pandas.DataFrame) -> str:
    """Return the size of what a comparison makes, in words."""
    size, frames = whole["size"].iloc[0], whole["frames"].iloc[0]
    return (
        size
        if frames is None or math.isnan(frames)
        else f"{size}, {format_count(int(frames), 'frame')}"
    )


def _on_a_card(whole: pandas.DataFrame, budget: int) -> list[str]:
    """Say what a comparison can do on a card of that size, and how the rest of it can be had."""
    size, encode = _made(whole), whole["encode_bytes"].iloc[0]
    fits = [_with_bytes(row, "resident_bytes") for row in _fitting(whole, "resident_bytes", budget)]
    said = format_bytes(budget)
    sentences = [
        f"compare at {size} fits into {said} with {format_list(fits, 'or')}."
        if fits
        else f"compare at {size} fits into {said} with no recipe while all of it is on the card."
    ]
    done = {row.recipe for row in _fitting(whole, "resident_bytes", budget)}
    for column, words in _WAYS:
        rows = [row for row in _fitting(whole, column, budget) if row.recipe not in done]
        if rows:
            done |= {row.recipe for row in rows}
            named = format_list([_with_bytes(row, column) for row in rows], "and")
            sentences.append(f"{named} {'fits' if len(rows) == 1 else 'fit'} {words}.")
    left = [row.recipe for row in whole.itertuples() if row.recipe not in done]
    if left:
        sentences.append(f"{format_list(left)} can't be had there in any way.")
    where = "it fits" if encode <= budget else "it doesn't fit, so the processor encodes"
    sentences.append(f"Encoding prompts takes {format_bytes(encode)} before: {where}.")
    return sentences


def _fitting(whole: pandas.DataFrame, column: str, budget: int) -> list:
    return [row for row in whole.itertuples() if getattr(row, column) <= budget]


def _with_bytes(row, column: str) -> str:
    return f"{row.recipe} ({format_bytes(getattr(row, column))})"


@dataclass(frozen=True)
class Together:
    """The denoiser in one dtype beside all other parts that can be quantized in another."""

    denoiser: str
    others: str
    weight_bytes: int


def combinations(table: pandas.DataFrame) -> list[Together]:
    """Return the denoiser and the other parts in every pair of recipes, from the most precise."""
    denoiser = table.attrs["denoiser"]
    parts = table[table["component"] != PIPELINE]
    held = {(row.component, row.recipe): row.weight_bytes for row in parts.itertuples(index=False)}
    names = dict.fromkeys(parts["component"])
    recipes = dict.fromkeys(parts["recipe"])
    optional = {name for name, recipe in held if recipe != REFERENCE and name != denoiser}
    if not optional:
        return []
    found = []
    for own in recipes:
        for other in recipes:
            chosen = {
                name: own if name == denoiser else other if name in optional else REFERENCE
                for name in names
            }
            if all(pair in held for pair in chosen.items()):
                total = sum(held[pair] for pair in chosen.items())
                found.append(Together(own, other, int(total)))
    return found


def _alone(table: pandas.DataFrame, budget: int) -> str:
    denoiser = table.attrs["denoiser"]
    rows = table[table["component"] == denoiser]
    fits = [row.recipe for row in rows.itertuples() if row.fits]
    least = rows["weight_bytes"].min()
    if not fits:
        return (
            f"Of the {denoiser} alone nothing fits into {format_bytes(budget)}: the least is "
            f"{format_bytes(least)}."
        )
    return f"Into {format_bytes(budget)} the {denoiser} alone fits as {format_list(fits, 'or')}."


def _together(table: pandas.DataFrame, budget: int) -> list[str]:
    whole = table[table["component"] == PIPELINE]
    if not len(whole):
        return []
    denoiser = table.attrs["denoiser"]
    fits = [row.recipe for row in whole.itertuples() if row.fits]
    sentences = []
    if fits:
        sentences.append(f"The weights of all parts at once fit with {format_list(fits, 'or')}.")
    else:
        least = format_bytes(whole["weight_bytes"].min())
        sentences.append(f"The weights of all parts at once do not fit; the least is {least}.")
    best = _best(combinations(table), budget, set(fits))
    if best:
        names = _others(table)
        pairs = "; ".join(
            f"{denoiser} {format_list(own, 'or')} with {names} {format_list(others, 'or')} "
            f"({format_bytes(held)})"
            for own, others, held in best
        )
        sentences.append(f"With {names} quantized too: {pairs}.")
    elif not fits and (pairs := combinations(table)):
        least = min(pairs, key=lambda pair: pair.weight_bytes)
        sentences.append(
            f"With {_others(table)} quantized too it takes at least "
            f"{format_bytes(least.weight_bytes)}."
        )
    return sentences


def _best(
    pairs: Sequence[Together], budget: int, done: set[str]
) -> list[tuple[list[str], list[str], int]]:
    """Return, for each dtype of the denoiser, the most precise others that fit; equals as one."""
    best: list[tuple[list[str], list[str], int]] = []
    for own in dict.fromkeys(pair.denoiser for pair in pairs):
        fitting = [p for p in pairs if p.denoiser == own and p.weight_bytes <= budget]
        if own in done or not fitting:
            continue
        most = max(p.weight_bytes for p in fitting)
        others = [p.others for p in fitting if p.weight_bytes == most]
        if best and best[-1][1:] == (others, most):
            best[-1][0].append(own)
        else:
            best.append(([own], others, most))
    return best


def _others(table: pandas.DataFrame) -> str:
    denoiser = table.attrs["denoiser"]
    rows = table[(table["quantized_layers"] > 0) & ~table["component"].isin((PIPELINE, denoiser))]
    names = list(dict.fromkeys(rows["component"]))
    if all(name.startswith("text_encoder") for name in names):
        return "the text encoders" if len(names) > 1 else "the text encoder"
    return format_list(names)


def _title(name: str, part: pandas.DataFrame) -> str:
    if name != PIPELINE:
        return name
    quantized = dict.fromkeys(word for word in part["quantized"] if word)
    return f"all, {' or '.join(quantized)} quantized" if quantized else "all"


def _cells(part: pandas.DataFrame, recipes: list[str], column: str) -> list[str]:
    values = dict(zip(part["recipe"], part[column], strict=True))
    return [format_bytes(values[recipe]) if recipe in values else ABSENT for recipe in recipes]


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(sentence, width)]
