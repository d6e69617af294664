"""A Linear layer with bitsandbytes' values, its scales in buffers where they are counted."""

from __future__ import annotations

from functools import lru_cache

import torch

from ...errors import BrokenModelError
from ...shapes import Layer
from ...weights import weights_of
from .. import t5
from .bytes import BLOCK
from .library import (
    QuantState,
    dequantize_4bit,
    get_4bit_type,
    int8_vectorwise_quant,
    quantize_4bit,
)


class BitsAndBytesLinear(torch.nn.Linear):
    """``input @ weight.T + bias`` with a weight in one of bitsandbytes' types.

    bitsandbytes' own layers keep scales in attributes that nobody counts; its 4 bits repack
    themselves at the first use on some processors, and fail there for widths that aren't in steps
    of 64 and 32.
    """

    def __init__(self, layer: Layer, word: str, dtype: torch.dtype) -> None:
        super().__init__(
            layer.in_features, layer.out_features, layer.bias, dtype=dtype, device="meta"
        )
        t5.cure(layer.path)
        self.requires_grad_(False)
        self.quantolab_word = word
        self.compute_dtype = dtype
        self.register_buffer("scale", torch.empty(0, device="meta"))

    def dequantized(self) -> torch.Tensor:
        """Return the weight that the layer stands for."""
        if self.weight.dtype == torch.int8:
            plain = self.weight.float() * (self.scale / 127).unsqueeze(1)
            return plain.to(self.compute_dtype)
        name = weights_of(self.quantolab_word).name
        state = QuantState(
            absmax=self.scale,
            shape=torch.Size((self.out_features, self.in_features)),
            code=_code(name, str(self.weight.device)),
            blocksize=BLOCK,
            quant_type=name,
            dtype=self.compute_dtype,
        )
        return dequantize_4bit(self.weight.data, state)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product for an input of shape (..., in_features)."""
        if self.weight.dtype != torch.int8:
            return torch.nn.functional.linear(input, self.dequantized().to(input.dtype), self.bias)
        rows = input.reshape(-1, input.shape[-1])
        values, scales, _ = int8_vectorwise_quant(rows.to(torch.float16))
        product = torch.ops.bitsandbytes.int8_scaled_mm.default(
            values, self.weight, scales, self.scale, bias=self.bias, dtype=input.dtype
        )
        return product.reshape(*input.shape[:-1], self.out_features)


@lru_cache(maxsize=8)
def _code(name: str, device: str) -> torch.Tensor:
    return get_4bit_type(name, device=torch.device(device))


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
        If the weight holds NaN or infinity, or int8's float16 can't hold it.
    """
    dtype = dtype or weight.dtype
    weights = weights_of(word)
    linear = BitsAndBytesLinear(layer, word, dtype)
    values = weight.detach().to(dtype).contiguous()
    with torch.no_grad():
        if weights.bits == 8:
            data, scale, _ = int8_vectorwise_quant(values.to(torch.float16))
            scale = scale.float()
        else:
            data, state = quantize_4bit(
                values, blocksize=BLOCK, compress_statistics=False, quant_type=weights.name
            )
            scale = state.absmax
    if not torch.isfinite(scale).all():
        raise BrokenModelError(f"the weight of layer {layer.path!r} holds NaN or infinity")
    linear.weight = torch.nn.Parameter(data, requires_grad=False)
    linear.scale = scale
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return linear.train(training), ()


def kernel_of(linear: torch.nn.Module) -> str:
    """Return what multiplies by a layer's weight, in words."""
    if linear.weight.dtype == torch.int8:
        return "int8 x int8, inputs quantized row by row"
    return "dequantize, then matmul"
