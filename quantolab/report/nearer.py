"""Recipes of one word against one another, picture by picture: what keeping a layer has bought."""

from __future__ import annotations

import itertools

from .. import units
from ..measure.quality import Nearer, how_much_nearer
from ..records import Comparison, Trial


def nearer_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return by how much recipes of the same weights word are nearer to the reference.

    Each pair is compared picture by picture, since what is hard about a prompt is hard for both:
    intervals of the two recipes may overlap where that of their difference shows one.

    Examples
    --------
    >>> nearer_sentences(comparison)                            # doctest: +SKIP
    ('int4 proj_out=none is 0.8 dB (0.2–1.5) nearer to the reference than int4.',)
    """
    judged = [t for t in comparison.trials if t.ok and t.quality and not t.compiled]
    said = (
        _sentence(one, other)
        for one, other in itertools.combinations(judged, 2)
        if one.recipe.weights == other.recipe.weights
    )
    return tuple(sentence for sentence in said if sentence is not None)


def _sentence(one: Trial, other: Trial) -> str | None:
    found = _nearer(one, other)
    if found is not None and found.decibels < 0:
        one, other = other, one
        found = _nearer(one, other)
    if found is None:
        return None
    by = units.format_decibels(found.decibels, found.low, found.high)
    if found.low is None:
        return f"{one.label} is {by} nearer to the reference than {other.label}, in these pictures."
    if found.low <= 0:
        return f"Pictures of {one.label} and {other.label} aren't told apart: {by}."
    return f"{one.label} is {by} nearer to the reference than {other.label}."


def _nearer(one: Trial, other: Trial) -> Nearer | None:
    return how_much_nearer(*([q.psnr_db for q in trial.quality] for trial in (one, other)))
