"""SDNQ's weights as plain values and scales, and back, where nothing is lost."""

from __future__ import annotations

import torch

from ...errors import UnsupportedError
from ...shapes import Layer
from ...weights import is_word, weights_of
from ..values import Values
from .bytes import group_size, unsupported
from .layers import empty_linear, set_tensors
from .library import pack_int, unpack_int
from .stored_form import word_of

_USUAL = 128  # values that share a scale, where Quanto divides rows into groups


def values_of(part: torch.nn.Module) -> Values:
    """Return what a layer's weight is made of.

    Raises
    ------
    UnsupportedError
        If it is made of more than values, scales and zero points.
    """
    own, weights = part.sdnq_dequantizer, weights_of(word_of(part))
    if part.svd_up is not None or (weights.floating and weights.is_packed):
        raise UnsupportedError(f"{weights.word} has no other form that says the same")
    data, rows = part.weight.detach(), part.out_features
    if own.is_packed:
        data = unpack_int(data, own.weights_dtype, own.quantized_weight_shape)
    kind = torch.uint8 if weights.name.startswith("uint") else torch.int8
    data = data if weights.floating else data.to(kind)
    zero = None if part.zero_point is None else part.zero_point.detach().float().reshape(rows, -1)
    scale = part.scale.detach().float().reshape(rows, -1)
    return Values(data.reshape(rows, part.in_features), scale, zero, weights.bits or 8)


def layer_of(
    values: Values, layer: Layer, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.nn.Module:
    """Return a layer whose weight is made of these values.

    Raises
    ------
    UnsupportedError
        If SDNQ has no such weight.
    """
    by_row = values.group == layer.in_features
    # Rows no longer than Quanto's usual group are one group: then all layers have one word.
    group = _USUAL if by_row and values.bits < 8 and values.group <= _USUAL else values.group
    word = f"sdnq:{values.kind}-g{group}" if group == _USUAL or not by_row else ""
    word = word or f"sdnq:{values.kind}-row"
    fits = is_word(word) and group_size(layer, weights_of(word)) == values.group
    reason = unsupported(layer, word, "", "") if fits else f"SDNQ has no {word} for its shape"
    if not reason and (values.zero is None) == weights_of(word).grouped:
        reason = f"SDNQ has no {values.kind} with such zero points"
    if reason:
        raise UnsupportedError(reason)
    linear = empty_linear(layer, word, dtype)
    own = linear.sdnq_dequantizer
    data = values.data.contiguous().reshape(own.quantized_weight_shape)
    if own.is_packed:
        data = pack_int(data, own.weights_dtype)
    tensors = {"weight": data.contiguous(), "scale": values.scale.reshape(linear.scale.shape)}
    if values.zero is not None:
        tensors["zero_point"] = values.zero.reshape(linear.zero_point.shape)
    set_tensors(linear, {name: t.contiguous() for name, t in tensors.items()}, bias)
    return linear
