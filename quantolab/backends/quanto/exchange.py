"""Quanto's weights as plain values and scales, and back, where nothing is lost."""

from __future__ import annotations

import torch
from optimum.quanto.tensor.grouped import grouped_shape
from optimum.quanto.tensor.packed import PackedTensor

from ...errors import UnsupportedError
from ...shapes import Layer
from ...weights import weights_of
from ..values import Values
from .bytes import group_size
from .layers import empty_linear, set_tensors
from .row_wise import weight_of
from .stored_form import weight_specs, weight_values, word_of

_WORDS = {"int8": "int8", "float8_e4m3fn": "float8", "uint4": "int4", "uint2": "int2"}


def values_of(part: torch.nn.Module) -> Values:
    """Return what a layer's weight is made of."""
    weight = part.weight.data if type(part.weight) is torch.nn.Parameter else part.weight
    names = [spec.name for spec in weight_specs(weight, "")]
    parts = dict(zip(names, weight_values(weight), strict=True))
    rows, columns = weight.shape
    if "_shift" not in parts:
        return Values(parts["_data"], parts["_scale"].float().reshape(rows, 1), None, 8)
    bits = weights_of(word_of(part)).bits or 4
    size, grouped = weight.size(), weight.size()
    if part.weight_group_size is not None:
        grouped = torch.Size(grouped_shape(size, 0, part.weight_group_size))
    packed = PackedTensor(parts["_data._data"], bits, grouped, (grouped[1], 1))
    data = packed.unpack().to(torch.uint8).reshape(rows, columns)
    scale, shift = (parts[name].float().reshape(rows, -1) for name in ("_scale", "_shift"))
    return Values(data, scale, -shift, bits)


def layer_of(
    values: Values, layer: Layer, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.nn.Module:
    """Return a layer whose weight is made of these values.

    Raises
    ------
    UnsupportedError
        If Quanto has no such weight, or would round its scales.
    """
    word = _WORDS.get(values.kind)
    group = layer.in_features
    if word is not None and weights_of(word).grouped:
        group = group_size(layer.in_features) or layer.in_features
    if word is None or values.group != group or (layer.out_features == 1 and values.bits < 8):
        raise UnsupportedError(
            f"Quanto has no {values.kind} with {values.group} values a scale for its shape"
        )
    zero = values.zero if values.bits < 8 else None
    if (values.zero is None) != (values.bits == 8):
        raise UnsupportedError(f"Quanto has no {values.kind} with such zero points")
    for value in (values.scale, zero):
        if value is not None and not torch.equal(value.to(dtype).float(), value):
            name = str(dtype).removeprefix("torch.")
            raise UnsupportedError(
                f"its scales aren't numbers of {name}, in which Quanto holds them: only those "
                "that came from Quanto are"
            )
    linear = empty_linear(layer, word, dtype)
    scale = values.scale.to(dtype).reshape(-1, 1)
    if values.bits == 8:
        parts = {"_data": values.data, "_scale": scale if len(scale) > 1 else scale.reshape(())}
    else:
        assert zero is not None
        rows = values.data.reshape(-1, group)
        packed = PackedTensor.pack(rows, values.bits)
        shift = -zero.to(dtype).reshape(-1, 1)
        parts = {"_data._data": packed._data, "_scale": scale, "_shift": shift}
    size = torch.Size((layer.out_features, layer.in_features))
    shape = linear.weight_group_size, size, (layer.in_features, 1)
    set_tensors(linear, weight_of(parts, linear.weight_qtype, *shape), bias, dtype)
    return linear
