"""A Linear layer whose weight is one of torchao's tensors: made from a weight, or waiting."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import BrokenModelError
from ...shapes import Layer
from ...weights import weights_of
from .. import pickles
from ..rows import by_rows
from .library import (
    Float8Tensor,
    Float8WeightOnlyConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    PerGroup,
    PerRow,
)


def own_config(word: str) -> Any:
    """Return what a word means in torchao's own terms; inductor's settings are left alone."""
    weights = weights_of(word)
    if weights.floating:
        return Float8WeightOnlyConfig(set_inductor_config=False)
    granularity = PerGroup(weights.group) if weights.group else PerRow()
    return Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)


def tensor_of(
    word: str, parts: dict[str, torch.Tensor], dtype: torch.dtype
) -> Int8Tensor | Float8Tensor:
    """Return torchao's tensor that is made of these parts: ``qdata, scale, zero_point``."""
    weights = weights_of(word)
    block = [1, weights.group or parts["qdata"].shape[1]]
    if weights.floating:
        return Float8Tensor(parts["qdata"], parts["scale"], block_size=block, dtype=dtype)
    return Int8Tensor(parts["qdata"], parts["scale"], block, dtype, zero_point=parts["zero_point"])


def part_shapes(layer: Layer, word: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each part of a layer's weight."""
    weights = weights_of(word)
    rows, columns = layer.out_features, layer.in_features
    scales = (rows, columns // (weights.group or columns))
    if weights.floating:
        return {
            "qdata": (torch.float8_e4m3fn, (rows, columns)),
            "scale": (torch.float32, scales),
        }
    return {
        "qdata": (torch.int8, (rows, columns)),
        "scale": (torch.float32, scales),
        "zero_point": (torch.int8, scales),
    }


def empty_linear(layer: Layer, word: str, dtype: torch.dtype) -> torch.nn.Linear:
    """Return a layer on the meta device, waiting for its tensors."""
    pickles.cure(word)
    linear = torch.nn.Linear(
        layer.in_features, layer.out_features, layer.bias, dtype=dtype, device="meta"
    )
    parts = {
        name: torch.empty(shape, dtype=kind, device="meta")
        for name, (kind, shape) in part_shapes(layer, word).items()
    }
    set_tensors(linear, word, parts, None, dtype)
    return linear.requires_grad_(False)


def quantize_linear(
    layer: Layer,
    word: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    training: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Return one layer quantized, and the names of the cures that it needed.

    Arguments as for every backend's ``layers.quantize_linear``.

    Raises
    ------
    BrokenModelError
        If the weight holds NaN or infinity.
    """
    dtype = dtype or weight.dtype
    weights = weights_of(word)
    granularity = own_config(word).granularity

    def quantized(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        if weights.floating:
            made = Float8Tensor.from_hp(rows.to(dtype), granularity=granularity)
        else:
            made = Int8Tensor.from_hp(rows.to(dtype), granularity=granularity)
        names = part_shapes(layer, word)
        return {name: getattr(made, name) for name in names}

    with torch.no_grad():
        parts = by_rows(weight.detach(), quantized)
    if not torch.isfinite(parts["scale"]).all():
        raise BrokenModelError(f"the weight of layer {layer.path!r} holds NaN or infinity")
    linear = empty_linear(layer, word, dtype)
    set_tensors(linear, word, parts, bias, dtype)
    return linear.train(training), ()


def set_tensors(
    linear: torch.nn.Linear,
    word: str,
    parts: dict[str, torch.Tensor],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Put the parts of a weight, and a bias, into a waiting layer."""
    tensor = tensor_of(word, parts, dtype)
    linear.weight = torch.nn.Parameter(tensor, requires_grad=False)
    linear.quantolab_word = word
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)


def kernel_of(linear: torch.nn.Module) -> str:
    """Return what multiplies by a layer's weight, in words."""
    weight = linear.weight
    row_wise = weight.block_size[-1] >= weight.shape[-1]
    if isinstance(weight, Int8Tensor) and row_wise:
        return "matmul with the integers, then scale"
    return "dequantize, then matmul"
