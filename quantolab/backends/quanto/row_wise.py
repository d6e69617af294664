"""Quanto's arithmetic on a CPU, a few rows at a time: the same bits from a fraction of the memory.

Quanto quantizes a weight in seven passes or more over the whole of it, each into fresh memory.
Every row (int8, float8) or group (int4, int2) has a scale of its own, so the same operations can
be done on as many rows as fit in the processor's cache: the weight is read once, only the result
is written, and nothing of the weight's size is needed beside it.
"""

from __future__ import annotations

import threading

import torch
from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor, qtype
from optimum.quanto.tensor.grouped import grouped_shape
from optimum.quanto.tensor.packed import PackedTensor

_VALUES = 1 << 21  # at a time: 4 MB in bfloat16, 8 in float32


def quantized_parts(
    weight: torch.Tensor, kind: qtype, group_size: int | None, dtype: torch.dtype
) -> dict[str, torch.Tensor] | None:
    """Return a weight's data, scale and shift under the names that Quanto's files use.

    Parameters
    ----------
    weight : torch.Tensor
        Of shape (out_features, in_features), in any floating-point dtype.
    kind : qtype
        What to quantize to.
    group_size : int or None
        Values that share a scale; None for one scale a row.
    dtype : torch.dtype
        Compute dtype, to which values are cast first; scales have it too.

    Returns
    -------
    dict or None
        None where Quanto's own way is to be taken: weights on other devices, of one row (which
        Quanto treats in its own way), not contiguous, or whose rows don't fill whole bytes.
    """
    if weight.device.type != "cpu" or weight.dim() != 2 or not weight.is_contiguous():
        return None
    grouped = weight if group_size is None else weight.reshape(-1, group_size)
    if weight.shape[0] == 1 or grouped.shape[0] == 1 or not grouped.numel():
        return None
    if kind.bits == 8:
        return _symmetric(weight, kind, dtype)
    return None if grouped.shape[0] % (8 // kind.bits) else _affine(grouped, kind, dtype)


def weight_of(
    parts: dict[str, torch.Tensor],
    kind: qtype,
    group_size: int | None,
    size: torch.Size,
    stride: tuple[int, ...],
) -> torch.Tensor:
    """Return the generic quantized weight that is made of these parts."""
    if "_shift" not in parts:
        return WeightQBytesTensor(kind, 0, size, stride, parts["_data"], parts["_scale"], None)
    grouped, grouped_stride = size, stride
    if group_size is not None:
        grouped = torch.Size(grouped_shape(size, 0, group_size))
        grouped_stride = (grouped[1], 1)
    packed = PackedTensor(parts["_data._data"], kind.bits, grouped, grouped_stride)
    return WeightQBitsTensor(
        kind, 0, group_size, size, stride, packed, parts["_scale"], parts["_shift"]
    )


def _symmetric(weight: torch.Tensor, kind: qtype, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As Quanto's `AbsmaxOptimizer` and ``quantize_symmetric``."""
    rows, columns = weight.shape
    data = torch.empty((rows, columns), dtype=kind.dtype)
    scale = torch.empty((rows, 1), dtype=dtype)
    limits = (torch.finfo if kind.is_floating_point else torch.iinfo)(kind.dtype)
    step = max(1, _VALUES // columns)
    scratch = _scratch(min(step, rows), columns, dtype)
    for start in range(0, rows, step):
        part = weight[start : start + step].to(dtype)
        values, own = scratch[: len(part)], scale[start : start + step]
        torch.abs(part, out=values)
        torch.div(torch.amax(values, dim=1, keepdim=True), kind.qmax, out=own)
        torch.div(part, own, out=values)
        if not kind.is_floating_point:
            values.round_()
        data[start : start + step] = values.clamp_(limits.min, limits.max)
    return {"_data": data, "_scale": scale}


def _affine(grouped: torch.Tensor, kind: qtype, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As Quanto's `MaxOptimizer`, ``quantize_affine`` and `PackedTensor`.

    A byte holds rows that lie a half (int4) or a quarter (int2) of the matrix apart.
    """
    rows, columns = grouped.shape
    per_byte, steps = 8 // kind.bits, 2**kind.bits - 1
    packed_rows = rows // per_byte
    data = torch.empty((packed_rows, columns), dtype=torch.uint8)
    scale, shift = (torch.empty((rows, 1), dtype=dtype) for _ in range(2))
    step = max(1, _VALUES // columns)
    values = _scratch(min(step, packed_rows), columns, dtype)
    small = _scratch(min(step, packed_rows), columns, torch.uint8)
    for start in range(0, packed_rows, step):
        target = data[start : start + step]
        count = len(target)
        for place in range(per_byte):
            own = slice(place * packed_rows + start, place * packed_rows + start + count)
            part = grouped[own].to(dtype)
            low, high = (f(part, dim=1, keepdim=True) for f in (torch.amin, torch.amax))
            torch.div(high - low, steps, out=scale[own])
            torch.neg(low, out=shift[own])
            torch.add(part, shift[own], out=values[:count])
            result = values[:count].div_(scale[own]).round_().clamp_(0, steps)
            if place == 0:
                target.copy_(result)
            else:
                target |= small[:count].copy_(result).bitwise_left_shift_(kind.bits * place)
    return {"_data._data": data, "_scale": scale, "_shift": shift}


def _scratch(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix for values that are needed for a moment, in memory that the thread keeps.

    Given back after each layer it would leave a hole after each: glibc before 2.38 doesn't use
    freed aligned memory for the same size again, and loading took 1.6 times its bytes.
    """
    count = rows * columns
    kept = _kept.by_dtype.get(dtype)
    if kept is None or len(kept) < count:
        with torch.inference_mode(False):  # or it couldn't be written outside of that mode
            kept = torch.empty(max(count, _VALUES), dtype=dtype, device="cpu")
        _kept.by_dtype[dtype] = kept
    return kept[:count].view(rows, columns)


class _Kept(threading.local):
    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, torch.Tensor] = {}


_kept = _Kept()
