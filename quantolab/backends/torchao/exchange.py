"""torchao's weights as plain values and scales, and back, where nothing is lost."""

from __future__ import annotations

import torch

from ...errors import UnsupportedError
from ...shapes import Layer
from ..values import Values
from .layers import empty_linear, set_tensors
from .stored_form import word_of


def values_of(part: torch.nn.Module) -> Values:
    """Return what a layer's weight is made of.

    Raises
    ------
    UnsupportedError
        If it has zero points, which no weights word of torchao's has.
    """
    word_of(part)
    weight = part.weight
    zero = getattr(weight, "zero_point", None)
    if zero is not None and bool(zero.any()):
        raise UnsupportedError("its zero points aren't 0")
    return Values(weight.qdata.detach(), weight.scale.detach().float(), None, 8)


def layer_of(
    values: Values, layer: Layer, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.nn.Module:
    """Return a layer whose weight is made of these values.

    Raises
    ------
    UnsupportedError
        If torchao has no such weight.
    """
    by_row = values.group == layer.in_features
    words = {"int8": "torchao:int8", "float8_e4m3fn": "torchao:float8"}
    word = words.get(values.kind)
    if word is None or values.zero is not None or not (by_row or values.kind == "int8"):
        raise UnsupportedError(
            f"torchao has no {values.kind} with {values.group} values a scale that runs on a CPU: "
            "int8 and float8 alone are converted to it"
        )
    word += "" if by_row else f"-g{values.group}"
    parts = {"qdata": values.data.contiguous(), "scale": values.scale.contiguous()}
    if values.kind == "int8":
        parts["zero_point"] = torch.zeros_like(values.scale, dtype=torch.int8)
    linear = empty_linear(layer, word, dtype)
    set_tensors(linear, word, parts, bias, dtype)
    return linear
