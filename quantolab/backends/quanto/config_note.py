"""A quantized model says so in its own configuration, for savers other than ours.

Diffusers and transformers write a model's configuration when it, or a pipeline that holds it, is
saved. Without a word about quantization there, loading it again gives layers of uninitialised
memory, silently. With it, plain Diffusers loads it with equal weights where its rules can express
which layers are quantized, and otherwise both libraries refuse it with an error.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..noting import Declared, library_of_model, put_declared
from .diffusers_form import diffusers_form

_UNALIGNED = (
    "save_pretrained writes int8 weights at any address of the file, and plain Diffusers, in "
    "bfloat16 on a CPU, crashes on those not starting in steps of 16 bytes; quantolab.save "
    "writes the same folder with weights in their places"
)


def declare(module: torch.nn.Module, quantized: dict[str, str], kept: Iterable[str]) -> None:
    """Put the ``quantization_config`` of a Diffusers or transformers model into its configuration.

    Modules of other libraries, and those of which nothing is quantized, are left as they are.

    Parameters
    ----------
    module : torch.nn.Module
        The quantized module.
    quantized : dict
        Weights dtype of each quantized layer by its path.
    kept : iterable of str
        Paths of the Linear layers that aren't quantized.
    """
    library = library_of_model(module)
    if library is None or not quantized:
        return
    form = diffusers_form(module, quantized, kept, library)
    note = ""
    if not form.loads:
        name = type(module).__name__
        note = f"what save_pretrained writes of this {name} needs quantolab to load: {form.reason}"
    elif "int8" in quantized.values() and _computes_in_bfloat16(module, quantized):
        note = _UNALIGNED
    put_declared(module, library, Declared(form.quantization_config, note))


def _computes_in_bfloat16(module: torch.nn.Module, quantized: dict[str, str]) -> bool:
    return module.get_submodule(next(iter(quantized))).input_scale.dtype == torch.bfloat16
