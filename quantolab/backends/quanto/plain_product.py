"""Multiplying by weights that no kernel of a CPU takes: made plain fast, with Quanto's bits.

Quanto goes through torch's conversion of float8, which takes one value at a time (eight times as
long as the product of a small layer), and through three layers of dispatch in Python for int2 and
int4. Every operation here gives the same values, rounded at the same places; the matrix product
and the bias that follow are the very calls of Quanto.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from optimum.quanto import QTensor, WeightQBitsTensor, WeightQBytesTensor
from optimum.quanto.tensor.function import QuantizedLinearFunction
from optimum.quanto.tensor.packed import PackedTensor
from torch.utils.weak import WeakIdKeyDictionary


class PlainProduct(QuantizedLinearFunction):
    """``input @ weight.T + bias`` of a weight that `made_plain` takes; the gradient is Quanto's."""

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plain: torch.Tensor
    ) -> torch.Tensor:
        """Return the product for x of shape (..., in_features); `plain` is the weight made so."""
        ctx.save_for_backward(x, weight)
        return _product(x, plain, bias)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return Quanto's gradients, and none of the weight made plain."""
        return (*QuantizedLinearFunction.backward(ctx, *gradients), None)


def multiplied(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the product as Quanto's generic classes have it, or None where theirs is to be taken.

    None is for other devices, kernels that Quanto has (int8 and int4 in bfloat16), quantized
    activations, other dtypes than the weight's, graphs that are being traced, and float8 codes
    or scales out of the ordinary.
    """
    if torch.compiler.is_compiling() or isinstance(x, QTensor):
        return None
    with torch.no_grad():
        plain = made_plain(weight)
    if plain is None or plain.dtype != x.dtype:
        return None
    if torch.is_grad_enabled():
        return PlainProduct.apply(x, weight, bias, plain)
    return _product(x, plain, bias)


def made_plain(weight: torch.Tensor) -> torch.Tensor | None:
    """Return what ``weight.dequantize()`` gives, bit for bit; None if it isn't known how."""
    kind = type(weight)
    if kind is WeightQBitsTensor:
        return _from_packed(weight)
    return _from_float8(weight) if kind is WeightQBytesTensor else None


def _product(x: torch.Tensor, plain: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = torch.matmul(x, plain.t())
    if bias is None:
        return out
    # A sum of its own, as Quanto rounds it; a bias that was kept in float32 makes a float32 sum.
    return out.add_(bias) if bias.dtype == out.dtype else out + bias


# --- int2 and int4 --------------------------------------------------------------------------


def _from_packed(weight: WeightQBitsTensor) -> torch.Tensor | None:
    packed, scale, shift = weight._data, weight._scale, weight._shift
    if scale.device.type != "cpu" or not isinstance(packed, PackedTensor) or weight.axis != 0:
        return None
    if shift.dtype != scale.dtype:
        return None
    stored, bits, rows = packed._data, weight.qtype.bits, packed.shape[0]
    per_byte, step = 8 // bits, len(stored)
    values = torch.empty((per_byte * step, *stored.shape[1:]), dtype=scale.dtype)
    for place in range(per_byte):
        part = stored if place == 0 else stored >> (bits * place)
        if place < per_byte - 1:
            part = part & (2**bits - 1)
        values[place * step : (place + 1) * step] = part
    return values[:rows].mul_(scale).sub_(shift).reshape(weight.shape)


# --- float8 ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wider:
    """How the bits of a float8 (e4m3fn) become those of a wider number, 2**-k times as large.

    Sign, exponent and the first bits of the fraction stand in the same order everywhere, so a
    shift to the left puts them in place; the sign bits that extending the integer has left
    between are cut out. What is then wrong is the bias of the exponent alone: a power of two.
    """

    whole: torch.dtype
    shift: int
    mask: int
    factor: float


_WIDER = {
    torch.bfloat16: _Wider(torch.int16, 4, 0x87F0 - (1 << 16), 2.0**120),
    torch.float32: _Wider(torch.int32, 20, 0x87F00000 - (1 << 32), 2.0**120),
}


def _from_float8(weight: WeightQBytesTensor) -> torch.Tensor | None:
    data, scale = weight._data, weight._scale
    wider = _WIDER.get(scale.dtype)
    if data.device.type != "cpu" or data.dtype != torch.float8_e4m3fn or wider is None:
        return None
    larger = scale * wider.factor
    # The smallest number shows whether this thread flushes what is as small as that to zero.
    least = torch.ones((), dtype=wider.whole).view(scale.dtype) * wider.factor
    if not (bool(least) and bool(torch.isfinite(larger).all()) and _is_finite(data)):
        return None
    bits = data.view(torch.int8).to(wider.whole)
    bits <<= wider.shift
    bits &= wider.mask
    return bits.view(scale.dtype).mul_(larger)


_found_finite = WeakIdKeyDictionary()
"""Versions at which float8 data were found to hold no NaN, by the data themselves."""


def _is_finite(data: torch.Tensor) -> bool:
    """Whether no code is a NaN: float8 has two, and no infinity. Looked through once a version."""
    version = None if data.is_inference() else data._version
    if version is None or _found_finite.get(data) != version:
        if bool((data.view(torch.int8).bitwise_and(0x7F) == 0x7F).any()):
            return False
        _found_finite[data] = version
    return True
