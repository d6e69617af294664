"""What is quantized and how, as a value: frozen, hashable, printable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ArgumentError, one_of
from .units import format_list
from .weights import COMPUTE_BYTES, DEFAULT, REFERENCE, WORDS

COMPUTE_DTYPES = tuple(COMPUTE_BYTES)


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a model.

    Parameters
    ----------
    weights : str
        Weights dtype: ``"float8"``, ``"int8"``, ``"int4"``, ``"int2"``, or ``"none"`` for the
        unquantized reference.
    skip : tuple of str
        Patterns of Linear layers that keep their weights as they are. Each is a leaf name
        (``"proj_out"``, as Diffusers matches), a full module path, a container's path (all
        layers under it), or a glob.
    components : tuple of str
        Names of the pipeline's parts to quantize, ``"transformer"`` or ``"text_encoder_2"``
        for example. Empty means the denoiser alone.

    Raises
    ------
    ArgumentError
        If a field holds something else.

    Examples
    --------
    >>> print(Recipe("int4", skip=("proj_out", "x_embedder")))
    int4, keeping proj_out and x_embedder
    """

    weights: str = DEFAULT
    skip: tuple[str, ...] = ()
    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("weights dtype", self.weights, WORDS)
        object.__setattr__(self, "skip", _words("skip", self.skip))
        object.__setattr__(self, "components", _words("components", self.components))
        if self.is_reference and self.skip:
            raise ArgumentError(
                "the unquantized reference (weights 'none') has nothing to skip, "
                f"but skip is {self.skip!r}"
            )

    @property
    def is_reference(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights == REFERENCE

    @property
    def label(self) -> str:
        """Short name, unique for a recipe: what tables, grids and `Comparison.images` use."""
        text = self.weights
        if self.skip:
            text += ", keeping " + format_list(self.skip)
        if self.components:
            text += " in " + format_list(self.components)
        return text

    def __str__(self) -> str:
        return self.label


def as_recipe(value: Recipe | str) -> Recipe:
    """Return a recipe from a recipe or a weights word.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        return Recipe(value)
    raise ArgumentError(
        f"a recipe is a Recipe or one of the words {', '.join(WORDS)}, not {value!r}"
    )


def default_recipes(
    weights: Iterable[str] = WORDS, skip: Iterable[str] = (), components: Iterable[str] = ()
) -> tuple[Recipe, ...]:
    """Return one recipe a weights word; skips and components don't apply to the reference."""
    skip, components = tuple(skip), tuple(components)
    return tuple(
        Recipe(word) if word == REFERENCE else Recipe(word, skip, components) for word in weights
    )


def slug(label: str) -> str:
    """Return a label as a folder name: lower-case letters, digits, dots and hyphens only.

    Where signs had to go (a glob's star, say) a short digest keeps different labels apart.
    """
    words = re.sub(r"[^a-z0-9.]+", "-", label.casefold()).strip("-.")[:60]
    if re.fullmatch(r"[\w .,-]*", label, re.ASCII) and len(label) <= 60:
        return words
    return f"{words}-{hashlib.sha256(label.encode()).hexdigest()[:6]}".lstrip("-")


def _words(field: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable):
        raise ArgumentError(f"{field} must be names, not {value!r}")
    words = tuple(value)
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise ArgumentError(f"{field} must hold names, not {word!r}")
    return tuple(dict.fromkeys(words))  # order kept, repetitions dropped
