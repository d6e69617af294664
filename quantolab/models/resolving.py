"""Layers times a recipe: which layer gets which weights word, and why. Shapes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ArgumentError
from ..recipes import Recipe
from ..shapes import Layer
from ..weights import REFERENCE
from .layers import (
    KEEP_ADAPTER,
    KEEP_FP32,
    belongs_to_adapter,
    check_patterns,
    kept_in_float32,
    linear_layers,
    match_layers,
)

if TYPE_CHECKING:
    import torch

    from .source import Source


@dataclass(frozen=True)
class Choice:
    """What a recipe means for one layer."""

    layer: Layer
    word: str
    """Weights word; ``"none"`` keeps the weight as it is."""
    why: str = ""
    """Why it is kept, where not the whole component is."""


@dataclass(frozen=True)
class Resolved:
    """What a recipe means for a component: a word for each of its Linear layers, in its order."""

    choices: tuple[Choice, ...]

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every Linear layer."""
        return tuple(choice.layer for choice in self.choices)

    @property
    def quantized(self) -> tuple[Choice, ...]:
        """Those that get another word than ``"none"``."""
        return tuple(choice for choice in self.choices if choice.word != REFERENCE)

    @property
    def words(self) -> dict[str, str]:
        """Weights word of each quantized layer by its path."""
        return {choice.layer.path: choice.word for choice in self.quantized}

    @property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """(path, why) of the layers that stay unquantized while others are."""
        return tuple((choice.layer.path, choice.why) for choice in self.choices if choice.why)


def resolve(
    module: torch.nn.Module,
    recipe: Recipe,
    component: str = "",
    dtype: str = "bfloat16",
    *,
    strict: bool = True,
) -> Resolved:
    """Return the weights word of each Linear layer of a component under a recipe.

    Parameters
    ----------
    module : torch.nn.Module
        The component, on any device; its weights aren't looked at.
    recipe : Recipe
        Its `components` aren't looked at either: see `components_of`.
    component : str
        The component's name, which patterns may begin with.
    dtype : str
        Compute dtype: some models keep some layers in float32.
    strict : bool
        Whether each pattern must hit a layer here. Not so for one of several components, which
        `check_patterns` checks together.

    Raises
    ------
    ArgumentError
        If `strict` and a pattern hits nothing, or no layer is left to quantize.
    """
    layers = linear_layers(module)
    name = component or type(module).__name__
    if strict:
        check_patterns(recipe.skip, {name: layers})
    skipped = match_layers(recipe.skip, layers, component)
    found = Resolved(tuple(_choice(module, recipe, layer, skipped, dtype) for layer in layers))
    if strict and not recipe.is_reference and not found.quantized:
        raise ArgumentError(
            f"{name} has {len(layers)} Linear layers and the recipe '{recipe}' keeps all of them: "
            "nothing to quantize"
        )
    return found


def components_of(recipe: Recipe, source: Source) -> tuple[str, ...]:
    """Return the names of the components that a recipe quantizes in a model."""
    return () if recipe.is_reference else recipe.components or source.default_components


def _choice(
    module: torch.nn.Module, recipe: Recipe, layer: Layer, skipped: Mapping[str, str], dtype: str
) -> Choice:
    if kept_in_float32(module, layer.path, dtype):
        return Choice(layer, REFERENCE, KEEP_FP32)
    if belongs_to_adapter(layer.path):
        return Choice(layer, REFERENCE, KEEP_ADAPTER)
    if layer.path in skipped:
        return Choice(layer, REFERENCE, f"skip {skipped[layer.path]!r}")
    return Choice(layer, recipe.weights)
