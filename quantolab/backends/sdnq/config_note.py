"""A quantized model says so in its own configuration, for savers other than ours."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..noting import Declared, library_of_model, put_declared
from .diffusers_form import diffusers_form


def declare(module: torch.nn.Module, quantized: dict[str, str], kept: Iterable[str]) -> None:
    """Put the ``quantization_config`` of a model into its configuration; as for every backend."""
    library = library_of_model(module)
    if library is None or not quantized:
        return
    form = diffusers_form(module, quantized, kept, library)
    put_declared(module, library, Declared(form.quantization_config or {}, form.reason))
