"""The one way from a weights word to code that quantizes: a folder a backend, the same doors.

``bytes`` (formulae and what can't be, without torch), ``layers`` (a Linear layer quantized, or
waiting for its tensors), ``stored_form`` (its tensors as files hold them), ``diffusers_form`` and
``config_note`` (how a model says that it is quantized), of those that convert ``exchange`` (layers
as plain values, and back), of those that the path matrix runs ``as_documented`` (configurations as
Diffusers' manual writes them), and of those that train ``training`` (a layer whose weight is
trained first). Only a backend's own folder imports its library, and that of a backend beside
Quanto is imported only where its words are used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..quietly import quiet_imports
from ..shapes import Layer
from ..units import format_list
from ..weights import (
    BACKENDS,
    COMPUTE_BYTES,
    FAMILIES,
    HOME,
    QUANTIZED,
    REFERENCE,
    backends_of,
    weights_of,
)
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

    Raises
    ------
    UnsupportedError
        If the backend's library is needed and isn't installed.
    """
    backend = weights_of(word).backend
    if name != "bytes":
        check_installed((word,))
    return _room(backend, name)


@functools.cache  # it is asked for every layer, and keeping quiet empties every logger's cache
def _room(backend: str, name: str) -> Any:
    with quiet_imports():
        return importlib.import_module(f"{__name__}.{backend}.{name}")


def _about(backend: str) -> Any:
    return importlib.import_module(f"{__name__}.{backend}")


def is_installed(backend: str) -> bool:
    """Return whether a backend's library is there, without importing it."""
    return backend == HOME or importlib.util.find_spec(_about(backend).LIBRARY) is not None


def offered_words() -> dict[str, tuple[str, ...]]:
    """Return the words that menus offer of each backend beside Quanto that is installed.

    By what people call it. Never imports torch, nor a backend's library.
    """
    return {
        _about(family.backend).TITLE: family.examples
        for family in FAMILIES
        if is_installed(family.backend)
    }


def check_installed(words: Iterable[str]) -> None:
    """Make sure that the libraries are there which some weights words need. Never imports torch.

    Raises
    ------
    UnsupportedError
        With what to install.
    """
    for word in words:
        backend = weights_of(word).backend
        if backend and not is_installed(backend):
            raise UnsupportedError(
                f"the weights word {word!r} needs {_about(backend).TITLE}, which isn't installed: "
                f"pip install 'quantolab[{backend}]'"
            )


def check_backend(backend: str) -> None:
    """Make sure that a backend's library is there; raises as `check_installed`."""
    if not is_installed(backend):
        raise UnsupportedError(
            f"{_about(backend).TITLE} isn't installed: pip install 'quantolab[{backend}]'"
        )


def exchange(backend: str) -> Any:
    """Return the ``exchange`` of a backend: its layers as plain values and scales, and back.

    Raises
    ------
    UnsupportedError
        If it has none.
    """
    if importlib.util.find_spec(f"{__name__}.{backend}.exchange") is None:
        raise UnsupportedError(f"layers of {_about(backend).TITLE} have no other form")
    return _room(backend, "exchange")


def as_documented(word: str) -> Any:
    """Return a backend's configurations as plain Diffusers' manual writes them.

    Raises
    ------
    UnsupportedError
        If the backend isn't installed, or Diffusers documents no path for it on every device.
    """
    backend = weights_of(word).backend
    if importlib.util.find_spec(f"{__name__}.{backend}.as_documented") is None:
        raise UnsupportedError(
            f"paths of {_about(backend).TITLE} aren't known: Diffusers runs it with a GPU only"
        )
    return door(word, "as_documented")


def file_form() -> Any:
    """Return what writes and reads files in GGUF's form.

    Raises
    ------
    UnsupportedError
        If its library isn't installed.
    """
    check_backend("gguf")
    return _room("gguf", "file_form")


def script_form(backend: str) -> Any:
    """Return how a plain script quantizes with a backend beside Quanto; never imports torch.

    Raises
    ------
    UnsupportedError
        If no plain script does on every device.
    """
    if importlib.util.find_spec(f"{__name__}.{backend}.script") is None:
        raise UnsupportedError(
            f"plain Diffusers runs {_about(backend).TITLE} with a GPU only: scripts are written "
            "for the words of Quanto, SDNQ and torchao"
        )
    return _room(backend, "script")


def import_layers(words: Iterable[str]) -> None:
    """Import what quantizes to some weights words, which takes seconds."""
    for word in words:
        door(word, "layers")


def package_versions(words: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of the backends of some words, by their packages."""
    names = [_about(backend).PACKAGE for backend in backends_of(words)]
    return {name: metadata.version(name) for name in names}


def package_of(backend: str) -> str:
    """Return what a backend is called where packages are installed."""
    package: str = _about(backend).PACKAGE
    return package


def kernels(module: torch.nn.Module) -> str | None:
    """Return what multiplies by the weights of a module's quantized layers; None without any."""
    found: dict[str, None] = {}
    for path, word in quantized_layers(module).items():
        found[door(word, "layers").kernel_of(module.get_submodule(path))] = None
    return ", ".join(sorted(found)) or None


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


def unsupported(layer: Layer, word: str, dtype: str, device: str = "") -> str:
    """Return why a layer can't have a word, with what it is asked for; empty if it can.

    Parameters
    ----------
    layer, word, dtype
        As for `layer_bytes`.
    device : str
        Where it will run; empty where that isn't known yet.
    """
    reason = (
        "" if word == REFERENCE else door(word, "bytes").unsupported(layer, word, dtype, device)
    )
    return f"layer {layer.path!r} can't be {word}: {reason}" if reason else ""


def check_supported(words: Iterable[tuple[Layer, str]], dtype: str, device: str = "") -> None:
    """Make sure that layers can have their words, before any weight is read.

    Raises
    ------
    UnsupportedError
        For the first that can't, with the reason.
    """
    for layer, word in words:
        if reason := unsupported(layer, word, dtype, device):
            raise UnsupportedError(reason)


def quantizing_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the most that quantizing one layer takes on a CPU, its result included."""
    return door(word, "bytes").quantizing_bytes(layer, word, dtype)


def stored_form(backend: str) -> Any:
    """Return the ``stored_form`` of a backend by its name."""
    return _room(backend, "stored_form")


def stored_form_of(part: torch.nn.Module) -> Any:
    """Return the ``stored_form`` of the backend that made a layer; None for ordinary modules."""
    for backend in BACKENDS:
        # Where its library wasn't imported, no layer can be its.
        about = _about(backend)
        if getattr(about, "SIGN", about.LIBRARY) in sys.modules:
            form = stored_form(backend)
            if form.owns(part):
                return form
    return None


def computes_in(part: torch.nn.Module) -> torch.dtype | None:
    """Return what a layer computes in, if it is quantized so that its tensors don't tell."""
    form = stored_form_of(part)
    return form.computes_in(part) if hasattr(form, "computes_in") else None


def header_notes(module: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return what the headers of a module's files say beside its tensors, whose names are given."""
    for part in module.modules():
        form = stored_form_of(part)
        if form is not None:
            return form.header_notes(module, names) if hasattr(form, "header_notes") else {}
    return {}


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


def trainable_layers(module: torch.nn.Module) -> dict[str, str]:
    """Return the weights word of each layer of a module that is in training, by its path."""
    return {
        path: word
        for path, word in quantized_layers(module).items()
        if _in_training(module.get_submodule(path))
    }


def _in_training(part: torch.nn.Module) -> bool:
    form = stored_form_of(part)
    return hasattr(form, "is_trainable") and form.is_trainable(part)


def trainable_linear(layer: Layer, word: str, linear: torch.nn.Linear) -> torch.nn.Module:
    """Return a layer that computes by a word while its weight, another layer's, is trained."""
    return door(word, "training").trainable_linear(layer, word, linear)


def check_trainable(words: Iterable[tuple[Layer, str]]) -> None:
    """Make sure that layers can be trained while they compute by their words.

    Raises
    ------
    UnsupportedError
        For the first that can't.
    """
    for layer, word in words:
        backend = weights_of(word).backend
        if importlib.util.find_spec(f"{__name__}.{backend}.training") is None:
            raise UnsupportedError(
                f"layer {layer.path!r} can't be trained as {word}: {_about(backend).TITLE}'s "
                f"layers are quantized once and for all; {format_list(list(QUANTIZED))} can be "
                "trained, and converted afterwards"
            )


def quantized_inputs(module: torch.nn.Module) -> dict[str, str]:
    """Return to what each layer quantizes what flows into it, by its path; others are left out."""
    return {
        path: inputs.word
        for path in quantized_layers(module)
        if (inputs := getattr(module.get_submodule(path), "inputs", None)) is not None
    }


def activations() -> Any:
    """Return what quantizes activations: Quanto's alone can."""
    return _room(HOME, "activations")


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
