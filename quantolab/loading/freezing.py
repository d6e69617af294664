"""The end of a training: weights that were computed with as if quantized become so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..arguments import public
from ..backends import door, is_quantized, quantized_layers, trainable_layers
from ..errors import ArgumentError
from ..models.layers import linear_layers
from ..models.wording import recipe_of_words
from ..weights import REFERENCE
from .in_memory import check_finite
from .placing import put_module
from .report import QuantizeReport, joined, note_config, put_report

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_TRAINABLE = "quantize(module, recipe, trainable=True)"


@public
def freeze(module: torch.nn.Module | DiffusionPipeline) -> QuantizeReport:
    """Quantize, for good, the layers of a module that were trained as if they were quantized.

    What comes out is, bit for bit, what quantizing the trained weights anew gives, and computes
    what it computed in training. Works in place, one layer at a time; `save` and everything else
    that takes a quantized module takes it then.

    Parameters
    ----------
    module : torch.nn.Module or DiffusionPipeline
        From ``quantize(module, recipe, trainable=True)``, trained since, whole or in part. Cast it
        first (``module.to(torch.bfloat16)``) to compute in another dtype than it was trained in.

    Returns
    -------
    QuantizeReport
        As from `quantize`.

    Raises
    ------
    ArgumentError
        If none of its layers is in training.
    BrokenModelError
        If a weight holds NaN or infinity, as it does once a training has diverged; the module is
        then unchanged.

    Examples
    --------
    >>> module, report = quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "int8", True)
    >>> freeze(module).quantized
    ('0',)
    """
    if isinstance(module, torch.nn.Module):
        _check(module, type(module).__name__)
        return _frozen(module)
    parts = {n: p for n, p in module.components.items() if isinstance(p, torch.nn.Module)}
    mine = {name: part for name, part in parts.items() if trainable_layers(part)}
    if not mine:
        raise _nothing(type(module).__name__, any(map(is_quantized, parts.values())))
    for name, part in mine.items():
        _check(part, name)
    reports = {name: _frozen(part) for name, part in mine.items()}
    return joined(module, next(iter(reports.values())).recipe, reports)


def _check(module: torch.nn.Module, name: str) -> None:
    """Raise if a module can't be frozen, before anything changes."""
    paths = trainable_layers(module)
    if not paths:
        raise _nothing(name, is_quantized(module))
    for path in paths:
        check_finite(module.get_submodule(path).weight, path)


def _nothing(name: str, quantized: bool) -> ArgumentError:
    if quantized:
        return ArgumentError(f"{name} is frozen already: its weights are quantized, and final")
    return ArgumentError(f"{name} has no layer in training; {_TRAINABLE} makes some")


def _frozen(module: torch.nn.Module) -> QuantizeReport:
    cures = []
    shapes = {layer.path: layer for layer in linear_layers(module)}
    for path, word in trainable_layers(module).items():
        linear = module.get_submodule(path)
        frozen, names = door(word, "layers").quantize_linear(
            shapes[path], word, linear.weight, linear.bias, linear.training
        )
        linear.weight = None  # give the memory back before the next layer
        cures += [(path, name) for name in names]
        put_module(module, path, frozen)
    words = quantized_layers(module)
    before = getattr(module, "quantize_report", None)
    if isinstance(before, QuantizeReport):
        recipe, kept = before.recipe, before.kept
    else:
        recipe = recipe_of_words({path: words.get(path, REFERENCE) for path in shapes})
        kept = ()
    note_config(module, words, [path for path in shapes if path not in words])
    return put_report(module, recipe, words, kept, cures)
