"""Bytes from shapes alone: what a quantized model will hold, before a weight is read.

The formulae of each weights word stand with its backend (`quantolab.backends`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..backends import layer_bytes
from ..models.layers import kept_in_float32, linear_layers
from ..weights import COMPUTE_BYTES

if TYPE_CHECKING:
    import torch


def predict_weight_bytes(module: torch.nn.Module, words: Mapping[str, str], dtype: str) -> int:
    """Return the bytes that a component's parameters and buffers will hold once quantized.

    Parameters
    ----------
    module : torch.nn.Module
        The unquantized component, on any device; the meta device costs no memory.
    words : mapping of str to str
        Weights word of each layer that is quantized, by its path (`Resolved.words`).
    dtype : str
        Compute dtype.
    """
    return sum(bytes_by_module(module, words, dtype).values())


def bytes_by_module(
    module: torch.nn.Module, words: Mapping[str, str], dtype: str
) -> dict[str, int]:
    """Return the same by the path of the module that each parameter and buffer belongs to.

    Parameters as for `predict_weight_bytes`.
    """
    found: dict[str, int] = defaultdict(int)
    for layer in linear_layers(module):
        if layer.path in words:
            found[layer.path] += layer_bytes(layer, words[layer.path], dtype)
    for name, parameter in module.named_parameters():  # tied parameters come once
        owner, _, leaf = name.rpartition(".")
        if leaf != "weight" or owner not in words:
            found[owner] += parameter.numel() * _bytes_each(module, name, parameter, dtype)
    for name, buffer in module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        loose = leaf in module.get_submodule(owner)._non_persistent_buffers_set
        # Buffers that no file holds keep the dtype they were computed in.
        unit = buffer.element_size() if loose else _bytes_each(module, name, buffer, dtype)
        found[owner] += buffer.numel() * unit
    return dict(found)


def _bytes_each(module: torch.nn.Module, name: str, tensor: torch.Tensor, dtype: str) -> int:
    if not tensor.is_floating_point():
        return tensor.element_size()
    return 4 if kept_in_float32(module, name, dtype) else COMPUTE_BYTES[dtype]
