"""The one way from a weights word to code that quantizes: a folder a backend, the same doors.

``bytes`` (formulae, without torch), ``layers`` (a Linear layer quantized, or waiting for its
tensors), ``stored_form`` (its tensors as files hold them), ``diffusers_form`` and ``config_note``
(how a model says that it is quantized). Only a backend's own folder imports its library.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..shapes import Layer
from ..weights import BACKENDS, COMPUTE_BYTES, REFERENCE, weights_of
from .forms import DiffusersForm

if TYPE_CHECKING:
    import torch


def door(word: str, name: str) -> Any:
    """Return a module of the backend that a weights word means.

    Parameters
    ----------
    word : str
        A word that quantizes.
    name : str
        ``"bytes"``, ``"layers"``, ...; importing all but the first imports torch.
    """
    return importlib.import_module(f"{__name__}.{weights_of(word).backend}.{name}")


def layer_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the bytes that one layer's weight takes, whatever belongs to it included, no bias.

    Parameters
    ----------
    layer : Layer
        Its shape.
    word : str
        Weights word, or ``"none"`` for the unquantized weight.
    dtype : str
        Compute dtype, in which scales and shifts are held.
    """
    if word == REFERENCE:
        return layer.parameters * COMPUTE_BYTES[dtype]
    return door(word, "bytes").layer_bytes(layer, word, dtype)


def quantizing_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the most that quantizing one layer takes on a CPU, its result included."""
    return door(word, "bytes").quantizing_bytes(layer, word, dtype)


def stored_form(backend: str) -> Any:
    """Return the ``stored_form`` of a backend by its name."""
    return importlib.import_module(f"{__name__}.{backend}.stored_form")


def stored_form_of(part: torch.nn.Module) -> Any:
    """Return the ``stored_form`` of the backend that made a layer; None for ordinary modules."""
    for backend in BACKENDS:
        # Where its library wasn't imported, no layer can be its.
        if importlib.import_module(f"{__name__}.{backend}").LIBRARY in sys.modules:
            form = stored_form(backend)
            if form.owns(part):
                return form
    return None


def quantized_layers(module: torch.nn.Module) -> dict[str, str]:
    """Return the weights word of each quantized layer of a module, by its path.

    Raises
    ------
    ArgumentError
        If a layer's weights have a type that no word means.
    """
    return {
        path: form.word_of(part, path)
        for path, part in module.named_modules()
        if (form := stored_form_of(part)) is not None
    }


def is_quantized(module: torch.nn.Module) -> bool:
    """Return whether any layer of a module is quantized."""
    return any(stored_form_of(part) is not None for part in module.modules())


def diffusers_form(
    module: torch.nn.Module, words: dict[str, str], kept: Iterable[str], library: str
) -> DiffusersForm:
    """Return how plain Diffusers can be told what is quantized, or why it can't.

    Parameters
    ----------
    module : torch.nn.Module
        The component, quantized or not; only its class's own rules are looked at.
    words : dict
        Weights word of each quantized layer by its path.
    kept : iterable of str
        Paths of the Linear layers that aren't quantized.
    library : str
        ``"diffusers"`` or ``"transformers"``.
    """
    if not words:
        return DiffusersForm(True, "", None)
    form = door(next(iter(words.values())), "diffusers_form")
    return form.diffusers_form(module, words, kept, library)
