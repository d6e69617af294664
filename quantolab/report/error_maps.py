"""FLIP's error of each picture against the reference's, as pictures that a grid can show."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image

from .. import units
from ..errors import ArgumentError, UnsupportedError
from ..measure.quality import flip_map
from ..records import Comparison
from .difference_heat import ERROR_STEPS, HeatScale, heat_picture, heat_scale

Key = tuple[str, str, int]

WHAT = "FLIP: how different people would see each pixel if the two pictures took turns, from 0 to 1"
"""What the colours of an error map mean."""


@dataclass(frozen=True)
class ErrorMaps:
    """All error maps of a comparison, in colours of one scale."""

    images: dict[Key, Image.Image]
    """By (trial label, prompt, seed), of all that can be compared with the reference."""
    captions: dict[Key, str]
    """The mean of each: ``FLIP 0.018``."""
    scale: HeatScale

    @property
    def says(self) -> str:
        """What the colours mean, in words for a footer."""
        return f"maps of {WHAT}; black is 0, the brightest {self.scale.ticks[-1]}"


def why_no_flip() -> str | None:
    """Return why there are no error maps on this machine; None where there are."""
    try:
        found = find_spec("flip_evaluator") is not None
    except ValueError:  # what stands in its place is no module
        found = False
    return None if found else "Error maps need the package flip-evaluator, which isn't installed."


def error_maps(
    comparison: Comparison, known: MutableMapping[Key, tuple[tuple[Image.Image, ...], np.ndarray]]
) -> ErrorMaps:
    """Return the error maps of every picture that has one of the reference to stand against.

    Parameters
    ----------
    comparison : Comparison
        Whose pictures.
    known : mapping
        Of errors found before; those of pictures that are the same aren't computed again.

    Raises
    ------
    UnsupportedError
        Where flip-evaluator isn't installed.
    ArgumentError
        If there is no unquantized reference.
    """
    reason = why_no_flip()
    if reason is not None:
        raise UnsupportedError(reason)
    label = comparison.judge
    if label is None:
        raise ArgumentError("there is no unquantized reference to show errors against")
    found: dict[Key, np.ndarray] = {}
    for key, picture in comparison.images.items():
        other = comparison.images.get((label, *key[1:]))
        if key[0] == label or other is None or other.size != picture.size:
            continue
        before = known.get(key)
        if before is None or before[0] != (picture, other):
            before = known[key] = ((picture, other), _errors(picture, other))
        found[key] = before[1]
    scale = heat_scale(np.concatenate([e.ravel() for e in found.values()] or [[0]]), ERROR_STEPS)
    return ErrorMaps(
        images={key: heat_picture(errors, scale) for key, errors in found.items()},
        captions={key: error_words(errors) for key, errors in found.items()},
        scale=scale,
    )


def error_words(errors: np.ndarray) -> str:
    """Return the mean of an error map as text."""
    return f"FLIP {units.format_similarity(float(errors.mean()))}"


def _errors(picture: Image.Image, reference: Image.Image) -> np.ndarray:
    errors = flip_map(picture, reference)
    assert errors is not None  # `why_no_flip` has looked
    return errors
