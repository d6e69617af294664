"""The product by a quantized weight, whichever code makes it."""

from __future__ import annotations

import torch
from optimum.quanto import QTensor

from .kernels import TinyGemmProduct, TinyGemmWeightQBitsTensor
from .plain_product import made_plain, multiplied
from .row_wise import weight_of
from .tinygemm import generic_parts


def multiplied_by(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plainly: bool
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, by the kernel that a quantized weight has.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (..., in_features), contiguous.
    weight : torch.Tensor
        Of shape (out_features, in_features).
    bias : torch.Tensor or None
        Of shape (out_features,).
    plainly : bool
        Whether by the dequantized weight, whatever kernel there is (`cures.INT8_PLAIN`).
    """
    if isinstance(weight, TinyGemmWeightQBitsTensor):
        return TinyGemmProduct.apply(x, weight, bias)  # cures.TINYGEMM_TRACED
    if plainly and isinstance(weight, QTensor):
        weight = weight.dequantize()
    product = multiplied(x, weight, bias)
    if product is not None:
        return product
    return torch.nn.functional.linear(x, weight, bias)


def plain_values(weight: torch.Tensor) -> torch.Tensor:
    """Return the values that a quantized weight stands for, whatever kernel it is packed for."""
    if isinstance(weight, TinyGemmWeightQBitsTensor):
        parts = dict(zip(("_data._data", "_scale", "_shift"), generic_parts(weight), strict=True))
        shape = weight._group_size, weight.size(), weight.stride()
        weight = weight_of(parts, weight.qtype, *shape)
    plain = made_plain(weight)
    return weight.dequantize() if plain is None else plain
