"""Between Quanto's generic int4 form and the one that torch's CPU kernel wants, fast.

Quanto goes there through 32-bit integers, and comes back by multiplying with an identity matrix:
20 s for 200 million weights. Where the kernel's layout is the one below, moving bytes does the
same in a small part of the time. That it is, is tried once a process on a small matrix; elsewhere
(other processors, GPUs, another torch) Quanto's own way is taken.

Layout, from torch's ``int4mm_kernel.cpp``: rows in blocks, of 64 with AVX-512 and of 32 with AVX2;
in a block, column after column; in a column half as many bytes, byte j holding row j of the block
in its low half and the row half a block below in its high half.
"""

from __future__ import annotations

from functools import cache

import torch
from optimum.quanto import WeightQBitsTensor
from optimum.quanto.tensor.grouped import group
from optimum.quanto.tensor.packed import PackedTensor
from optimum.quanto.tensor.weights.tinygemm import (
    TinyGemmPackedTensor,
    TinyGemmWeightQBitsTensor,
)

_BLOCKS = (64, 32)  # rows
_CHUNK = 1 << 19  # bytes turned around at a time: they stay in the processor's cache
_UNPACK_ROWS = 1024  # rows of the identity matrix at a time; the whole one takes in_features² * 2


def optimized(weight: torch.Tensor) -> torch.Tensor:
    """Return a generic quantized weight in the class that Quanto computes it with here.

    The same, bit for bit, as ``weight.optimize()``.
    """
    scale = weight._scale  # a wrapper's own dtype and device take ten times as long to ask
    if scale.device.type == "cpu":
        tiny = weight.qtype.bits == 4 and scale.dtype == torch.bfloat16
        if not (tiny and weight._group_size == 128 and weight.dim() == 2):
            return weight  # generic on a CPU; Quanto would unpack int4 and pack it again
        if fits(weight.shape[0]):
            return _to_tinygemm(weight)
    return weight.optimize()


def generic_parts(weight: TinyGemmWeightQBitsTensor) -> list[torch.Tensor]:
    """Return data, scale and shift from which Quanto makes this very weight again.

    As `TinyGemmWeightQBitsTensor.weight_qbits_tensor`, with two differences: unpacking is fast
    and takes little memory, and the shift is exact. The kernel's shift is ``8 * scale - shift``,
    rounded to bfloat16; going back rounds once more, and where all weights of a group have one
    sign, the way forth again may end at a neighbour. The shift returned is one that doesn't.
    """
    scale = weight._scale_shift[:, :, 0].t().reshape(-1, 1)
    middle = weight._scale_shift[:, :, 1].t().reshape(-1, 1)
    return [
        _generic_data(weight),
        scale.contiguous(),
        _exact_shift(2 ** (weight.qtype.bits - 1) * scale, middle),
    ]


def _exact_shift(half: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """Return a shift for which ``half - shift`` is `middle`, all in bfloat16."""
    shift = half - middle
    wrong = (half - shift) != middle
    for step in (1, -1, 2, -2, 3, -3):
        if not bool(wrong.any()):
            break
        # bfloat16 values of one sign are ordered as their bits are.
        other = ((half - middle).view(torch.int16) + step).view(torch.bfloat16)
        fits = wrong & ((half - other) == middle)
        shift, wrong = torch.where(fits, other, shift), wrong & ~fits
    return shift.contiguous()


def fits(rows: int) -> bool:
    """Return whether a matrix of so many rows can be moved byte by byte on this CPU."""
    block = block_rows()
    return block > 0 and rows % (2 * block) == 0


@cache
def block_rows() -> int:
    """Return how many rows torch packs in a block for the CPU, tried on a small matrix.

    0 where it doesn't pack int4 as this module does.
    """
    rows, columns = 4 * _BLOCKS[0], 128
    values = (torch.arange(rows * columns) * 7 // 5 % 16).reshape(rows, columns)
    try:
        theirs = torch._convert_weight_to_int4pack_for_cpu(values.to(torch.int32), 2)
    except (RuntimeError, AttributeError):
        return 0
    if theirs.dtype != torch.uint8:
        return 0
    small = values.to(torch.uint8)
    stored = small[: rows // 2] | (small[rows // 2 :] << 4)
    ours = ((block, _packed(stored, block)) for block in _BLOCKS)
    return next((block for block, o in ours if torch.equal(theirs.reshape(-1), o.reshape(-1))), 0)


def _packed(stored: torch.Tensor, block: int) -> torch.Tensor:
    """Return the kernel's bytes from Quanto's, of shape (rows / 2, columns).

    Quanto's byte holds a row of the upper half of the matrix in its low half, and the row half a
    matrix below in its high half: as many of its rows as a block has are one above and one below.
    """
    columns = stored.shape[1]
    packed = torch.empty(stored.numel(), dtype=torch.uint8)
    # numpy: on pieces this small, torch's threads wait for each other longer than they work.
    source = stored.numpy().reshape(-1, 2, block // 2, columns)
    target = packed.numpy().reshape(2, -1, columns, block // 2)
    step = max(1, _CHUNK // (columns * block))
    for start in range(0, source.shape[0], step):
        first, second = source[start : start + step, 0], source[start : start + step, 1]
        part = target[:, start : start + step]
        part[0] = ((first & 15) | (second << 4)).swapaxes(1, 2)
        part[1] = ((first >> 4) | (second & 240)).swapaxes(1, 2)
    return packed.view(2 * stored.shape[0], columns // 2)


def _unpacked(packed: torch.Tensor, columns: int, block: int) -> torch.Tensor:
    """Return Quanto's bytes from the kernel's: the way back from `_packed`."""
    stored = torch.empty(packed.numel(), dtype=torch.uint8)
    source = packed.contiguous().numpy().reshape(2, -1, columns, block // 2)
    target = stored.numpy().reshape(-1, 2, block // 2, columns)
    step = max(1, _CHUNK // (columns * block))
    for start in range(0, target.shape[0], step):
        upper, lower = source[:, start : start + step].swapaxes(2, 3)
        part = target[start : start + step]
        part[:, 0] = (upper & 15) | (lower << 4)
        part[:, 1] = (upper >> 4) | (lower & 240)
    return stored


def _to_tinygemm(weight: WeightQBitsTensor) -> TinyGemmWeightQBitsTensor:
    rows, columns = weight.shape
    packed = _packed(weight._data._data.reshape(rows // 2, columns), block_rows())
    data = TinyGemmPackedTensor(packed, torch.Size((rows, columns)), (columns, 1))
    groups = columns // weight._group_size
    scale = weight._scale.reshape(rows, groups, 1)
    # As in TinyGemmWeightQBitsTensor.__init__, rounding included.
    shift = -weight._shift.reshape(rows, groups, 1) + 2 ** (weight.qtype.bits - 1) * scale
    both = torch.cat([scale, shift], 2).transpose(0, 1).contiguous()
    return TinyGemmWeightQBitsTensor(
        weight.qtype, weight.axis, weight._group_size, weight.size(), weight.stride(), data, both
    )


def _generic_data(weight: TinyGemmWeightQBitsTensor) -> torch.Tensor:
    packed, (rows, columns) = weight._data._data, weight.shape
    if packed.device.type == "cpu" and fits(rows):
        return _unpacked(packed, columns, block_rows()).view(-1, weight._group_size)
    values = _unpacked_by_kernel(weight._data)
    grouped = group(values, axis=0, group_size=weight._group_size)
    return PackedTensor.pack(grouped, weight.qtype.bits)._data


def _unpacked_by_kernel(packed: TinyGemmPackedTensor) -> torch.Tensor:
    """Return int4 values, one a byte, of shape (out_features, in_features).

    Packings are private to their kernels, so the kernel itself unpacks: it multiplies rows of
    the identity matrix, with scales of one and the shift in the middle.
    """
    out_features, in_features = packed.size()
    group_size, device = 32, packed._data.device
    unit = torch.ones(
        (in_features // group_size, out_features, 2), dtype=torch.bfloat16, device=device
    )
    unit[:, :, 1] = 8
    values = torch.empty((out_features, in_features), dtype=torch.uint8, device=device)
    multiply = (
        torch._weight_int4pack_mm_for_cpu if device.type == "cpu" else torch._weight_int4pack_mm
    )
    for start in range(0, in_features, _UNPACK_ROWS):
        stop = min(start + _UNPACK_ROWS, in_features)
        rows = torch.zeros((stop - start, in_features), dtype=torch.bfloat16, device=device)
        rows[:, start:stop].fill_diagonal_(1)
        values[:, start:stop] = multiply(rows, packed._data, group_size, unit).t().to(torch.uint8)
    return values
