"""What became of each layer when a component was quantized."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..backends import activations, door
from ..measure.held_bytes import weight_bytes
from ..models.resolving import Resolved
from ..recipes import Recipe
from ..units import format_bytes, format_count
from .dequantizing import let_libraries_dequantize
from .fusing import let_adapters_fuse
from .telling_dtype import let_libraries_tell_dtype

WAIT = "wait to be calibrated"


@dataclass(frozen=True)
class QuantizeReport:
    """What became of each Linear layer of a module."""

    recipe: Recipe
    quantized: tuple[str, ...]
    """Paths of the layers whose weights are quantized."""
    kept: tuple[tuple[str, str], ...]
    """(path, why) of the layers that keep their weights."""
    cures: tuple[tuple[str, str], ...]
    """(path, name of the cure) of layers that would crash or fail in plain Quanto."""
    weight_bytes: int
    """Bytes of the whole module afterwards."""
    words: tuple[str, ...] = ()
    """Weights word of each quantized layer, in the order of `quantized`."""
    said: tuple[str, ...] = ()
    """What else is to be known of where its weights are from."""

    def _repr_html_(self) -> str:
        """Return what counts of it: the paths of a large model's layers would fill pages."""
        said = (
            f"{self.recipe}: {format_count(len(self.quantized), 'layer')} quantized, "
            f"{len(self.kept)} kept; the module holds {format_bytes(self.weight_bytes)}"
        )
        lines = "".join(f"<li>{html.escape(text)}</li>" for text in self.notes())
        return f"<p>{html.escape(said)}</p><ul>{lines}</ul>"

    def notes(self) -> tuple[str, ...]:
        """Return the report as sentences: cures and kept layers, counted."""
        counts: dict[str, int] = {}
        for _, name in self.cures:
            counts[name] = counts.get(name, 0) + 1
        for _, why in self.kept:
            why = f"kept: {why}"
            counts[why] = counts.get(why, 0) + 1
        return (*self.said, *(f"{name} ({n} layers)" for name, n in counts.items()))


def finish(
    module: torch.nn.Module,
    recipe: Recipe,
    resolved: Resolved,
    cures: Iterable[tuple[str, str]],
) -> QuantizeReport:
    """Have a quantized module say what it is, in its own configuration and by its report.

    Parameters
    ----------
    module : torch.nn.Module
        Its layers are quantized.
    recipe : Recipe
        As it was asked for.
    resolved : Resolved
        What became of each layer.
    cures : iterable of (str, str)
        (path, name) of each cure that was applied.

    Returns
    -------
    QuantizeReport
        Also put into the attribute `quantize_report`: `save` records what it says.
    """
    words = resolved.words
    said: tuple[str, ...] = ()
    if recipe.activations is not None:
        for path in words:
            activations().quantize_inputs(module.get_submodule(path), recipe.activations)
        said = (f"activations of {len(words)} layers {WAIT}",)
    note_config(module, words, [path for path, _ in resolved.kept])
    return put_report(module, recipe, words, resolved.kept, cures, said)


def put_report(
    module: torch.nn.Module,
    recipe: Recipe,
    words: dict[str, str],
    kept: Iterable[tuple[str, str]],
    cures: Iterable[tuple[str, str]] = (),
    said: Iterable[str] = (),
) -> QuantizeReport:
    """Return what became of a module's layers, also put into its attribute `quantize_report`."""
    report = QuantizeReport(
        recipe,
        tuple(words),
        tuple(kept),
        tuple(cures),
        weight_bytes(module),
        tuple(words.values()),
        tuple(said),
    )
    module.quantize_report = report
    return report


def joined(module: Any, recipe: Recipe, reports: Mapping[str, QuantizeReport]) -> QuantizeReport:
    """Return the reports of a pipeline's parts as one; paths begin with the component."""
    return QuantizeReport(
        recipe,
        tuple(f"{name}.{path}" for name, r in reports.items() for path in r.quantized),
        tuple((f"{name}.{path}", why) for name, r in reports.items() for path, why in r.kept),
        tuple((f"{name}.{path}", cure) for name, r in reports.items() for path, cure in r.cures),
        weight_bytes(module),
        tuple(word for r in reports.values() for word in r.words),
        tuple(dict.fromkeys(said for r in reports.values() for said in r.said)),
    )


def note_config(module: torch.nn.Module, words: dict[str, str], kept: Iterable[str]) -> None:
    """Have a module's configuration say which of its layers are quantized, if any are.

    A model has one note, which the first layer's backend writes for all of them.
    """
    if words:
        let_libraries_dequantize(module)
        let_libraries_tell_dtype(module)
        let_adapters_fuse(words.values())
        door(next(iter(words.values())), "config_note").declare(module, words, kept)
