"""Bytes from shapes alone: what a quantized model will hold, before a weight is read.

Source of the formulae: optimum-quanto 0.2.7, ``nn/qmodule.py`` (group size), ``tensor/packed.py``
(packing) and ``tensor/optimizers`` (scale and shift). The tests hold them equal, to the byte, to
what quantized models really hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layers import Layer, kept_in_float32, linear_layers

if TYPE_CHECKING:
    import torch

_BITS = {"float8": 8, "int8": 8, "int4": 4, "int2": 2}
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def group_size(in_features: int) -> int | None:
    """Return how many weights of a row share one int4/int2 scale; None is the whole row.

    Quanto takes the first of 128, 96, 64, 32 that divides `in_features`, if that is over 128.
    """
    if in_features <= 128:
        return None
    return next((size for size in (128, 96, 64, 32) if in_features % size == 0), None)


def layer_bytes(layer: Layer, weights: str, dtype: str) -> int:
    """Return the bytes of one layer's weight (data, scales, shifts, activation scales), no bias.

    Parameters
    ----------
    layer : Layer
        Its shape.
    weights : str
        Weights dtype, or ``"none"`` for the unquantized weight.
    dtype : str
        Compute dtype, in which scales and shifts are held.
    """
    unit = _DTYPE_BYTES[dtype]
    if weights == "none":
        return layer.parameters * unit
    activation_scales = 2 * unit  # input_scale and output_scale, one value each
    if _BITS[weights] == 8:
        return layer.parameters + layer.out_features * unit + activation_scales
    rows, columns = layer.out_features, layer.in_features
    if group := group_size(layer.in_features):
        rows, columns = layer.parameters // group, group
    # Quanto reduces a single row along the wrong axis: one scale a column instead of one a row.
    scales = columns if rows == 1 else rows
    per_byte = 8 // _BITS[weights]
    return -(-rows // per_byte) * columns + 2 * scales * unit + activation_scales


def predict_weight_bytes(
    module: torch.nn.Module, weights: str, dtype: str, kept: frozenset[str] | set[str] = frozenset()
) -> int:
    """Return the bytes that a component's parameters and buffers will hold once quantized.

    Parameters
    ----------
    module : torch.nn.Module
        The unquantized component, on any device; the meta device costs no memory.
    weights : str
        Weights dtype, or ``"none"``.
    dtype : str
        Compute dtype.
    kept : set of str
        Full paths of Linear layers that stay unquantized. Those that the model keeps in float32
        stay so by themselves.
    """
    layers = () if weights == "none" else linear_layers(module)
    layers = [
        layer
        for layer in layers
        if layer.path not in kept and not kept_in_float32(module, layer.path, dtype)
    ]
    total = sum(layer_bytes(layer, weights, dtype) for layer in layers)
    quantized = {f"{layer.path}.weight" for layer in layers}
    for name, parameter in module.named_parameters():  # tied parameters come once
        if name not in quantized:
            total += parameter.numel() * _bytes_each(module, name, parameter, dtype)
    for name, buffer in module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        loose = leaf in module.get_submodule(owner)._non_persistent_buffers_set
        # Buffers that no file holds keep the dtype they were computed in.
        unit = buffer.element_size() if loose else _bytes_each(module, name, buffer, dtype)
        total += buffer.numel() * unit
    return total


def _bytes_each(module: torch.nn.Module, name: str, tensor: torch.Tensor, dtype: str) -> int:
    if not tensor.is_floating_point():
        return tensor.element_size()
    return 4 if kept_in_float32(module, name, dtype) else _DTYPE_BYTES[dtype]
