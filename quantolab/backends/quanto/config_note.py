"""A quantized model says so in its own configuration, for savers other than ours.

Diffusers and transformers write a model's configuration when it, or a pipeline that holds it, is
saved. Without a word about quantization there, loading it again gives layers of uninitialised
memory, silently. With it, plain Diffusers loads it with equal weights where its rules can express
which layers are quantized, and otherwise both libraries refuse it with an error.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .diffusers_form import diffusers_form

_UNALIGNED = (
    "save_pretrained writes int8 weights at any address of the file, and plain Diffusers, in "
    "bfloat16 on a CPU, crashes on those not starting in steps of 16 bytes; quantolab.save "
    "writes the same folder with weights in their places"
)


@dataclass(frozen=True)
class Declared:
    """A ``quantization_config`` that warns when it is written, if what is saved needs heeding.

    Both libraries call `to_dict` of such an object when they save.
    """

    values: dict
    note: str

    def to_dict(self) -> dict:
        """Return what belongs into ``config.json``; warns if there is a note."""
        if self.note:
            warnings.warn(self.note, UserWarning, stacklevel=3)
        return copy.deepcopy(self.values)


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
    library = _library(module)
    if library is None or not quantized:
        return
    form = diffusers_form(module, quantized, kept, library)
    note = ""
    if not form.loads:
        name = type(module).__name__
        note = f"what save_pretrained writes of this {name} needs quantolab to load: {form.reason}"
    elif "int8" in quantized.values() and _computes_in_bfloat16(module, quantized):
        note = _UNALIGNED
    declared = Declared(form.quantization_config, note)
    if library == "diffusers":
        module.register_to_config(quantization_config=declared)
    else:
        module.config = copy.deepcopy(module.config)  # other models may share it
        module.config.quantization_config = declared


def _library(module: torch.nn.Module) -> str | None:
    bases = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__}
    for library, base in (("diffusers", "ModelMixin"), ("transformers", "PreTrainedModel")):
        if (library, base) in bases:
            return library
    return None


def _computes_in_bfloat16(module: torch.nn.Module, quantized: dict[str, str]) -> bool:
    return module.get_submodule(next(iter(quantized))).input_scale.dtype == torch.bfloat16
