"""A weight in Quanto's form: the bits that Quanto itself would make of it."""

from __future__ import annotations

import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qtype, quantize_weight

from ...errors import BrokenModelError
from .row_wise import quantized_parts, weight_of
from .tinygemm import optimized


def quantized_weight(
    weight: torch.Tensor,
    kind: qtype,
    group_size: int | None,
    dtype: torch.dtype,
    *,
    for_kernel: bool,
    name: str = "",
) -> tuple[torch.Tensor, bool]:
    """Return Quanto's tensor for a weight, and whether rows of zeros had to be cured.

    Parameters
    ----------
    weight : torch.Tensor
        Of shape (out_features, in_features).
    kind, group_size : qtype, int or None
        What to quantize to, and how many values share a scale.
    dtype : torch.dtype
        Compute dtype.
    for_kernel : bool
        Whether in the class of the kernel that multiplies by it, or in the generic one.
    name : str
        Of the layer, for the error.

    Raises
    ------
    BrokenModelError
        If the weight holds NaN or infinity.
    """
    parts = quantized_parts(weight, kind, group_size, dtype)
    if parts is not None:
        scale = parts["_scale"]
        packed = weight_of(parts, kind, group_size, weight.size(), weight.stride())
        _check_scale(scale, name)
        if for_kernel:
            packed = optimized(packed)
    else:
        weight = weight.to(dtype)
        if kind.bits == 8:
            scale, shift = AbsmaxOptimizer()(weight, qtype=kind, axis=0), None
        else:
            scale, shift = MaxOptimizer()(weight, qtype=kind, axis=0, group_size=group_size)
        _check_scale(scale, name)
        packed = quantize_weight(
            weight,
            qtype=kind,
            axis=0,
            scale=scale,
            shift=shift,
            group_size=group_size,
            optimized=for_kernel,
        )
    zero_rows = kind.is_floating_point and not bool(scale.all())
    if zero_rows:
        _store_zeros(packed, scale)
    return packed, zero_rows


class ScaleOfRows(AbsmaxOptimizer):
    """Quanto's scales of 8 bits for a weight that is quantized on the way, 1 for rows of zeros.

    A layer whose weight was replaced by an unquantized one does that. See `cures.FLOAT8_ZERO_ROWS`.
    """

    def optimize(
        self, base: torch.Tensor, qtype: qtype, axis: int | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the scale of each row."""
        scale = super().optimize(base, qtype, axis)
        return scale.masked_fill(scale == 0, 1)


def _check_scale(scale: torch.Tensor, name: str) -> None:
    """Scales carry NaN and infinity of any value they were made from."""
    if not torch.isfinite(scale).all():
        raise BrokenModelError(f"the weight of layer {name!r} holds NaN or infinity")


def _store_zeros(packed: torch.Tensor, scale: torch.Tensor) -> None:
    """Overwrite the NaN of all-zero rows; float8 has no masked fill, its bytes have (0 is 0.0)."""
    raw = packed._data.view(torch.uint8)
    raw.masked_fill_((scale == 0).expand_as(raw), 0)
