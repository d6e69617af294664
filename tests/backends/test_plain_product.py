"""Our products of weights without a kernel are Quanto's to the bit, and left to it elsewhere."""

from __future__ import annotations

import pytest
import torch
from optimum.quanto import WeightQBytesTensor, qfloat8_e4m3fn

from quantolab.backends import unsupported
from quantolab.backends.quanto import cures
from quantolab.backends.quanto.layers import quantize_linear
from quantolab.backends.quanto.plain_product import made_plain, multiplied
from quantolab.shapes import Layer

_DTYPES = (torch.bfloat16, torch.float32)


def _layer(word: str, inside: int, outside: int, dtype: torch.dtype, bias: bool = True):
    generator = torch.Generator().manual_seed(inside + outside)
    weight = torch.randn(outside, inside, generator=generator).to(dtype)
    weight[0] *= 1e-3  # rows of their own sizes
    return quantize_linear(
        Layer("layer", inside, outside, bias),
        word,
        weight,
        torch.randn(outside, generator=generator).to(dtype) if bias else None,
    )[0]


def _same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    whole = torch.int16 if theirs.dtype == torch.bfloat16 else torch.int32
    return ours.dtype == theirs.dtype and torch.equal(ours.view(whole), theirs.view(whole))


def _float8(codes: torch.Tensor, scale: torch.Tensor) -> WeightQBytesTensor:
    data = codes.to(torch.uint8).view(torch.float8_e4m3fn)
    return WeightQBytesTensor(qfloat8_e4m3fn, 0, data.shape, data.stride(), data, scale, None)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.0123, 3e-30, 2.0**-126])
def test_every_finite_float8_code_becomes_what_torch_makes_of_it(dtype, scale):
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F]).repeat(2, 1)
    weight = _float8(codes, torch.tensor([[scale], [1.7 * scale]], dtype=dtype))
    ours = made_plain(weight)
    assert ours is not None
    assert _same_bits(ours, weight.dequantize())


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("word", ["float8", "int2", "int4"])
@pytest.mark.parametrize(
    ("inside", "outside", "bias"), [(256, 64, True), (160, 9, True), (20, 7, False), (128, 4, True)]
)
def test_products_are_quantos_to_the_bit(word, dtype, inside, outside, bias):
    layer = _layer(word, inside, outside, dtype, bias)
    for shape in ((5, inside), (2, 33, inside), (1, 1, inside)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            theirs = torch.nn.functional.linear(x, layer.weight, layer.bias)
            assert multiplied(x, layer.weight, layer.bias) is not None or _has_kernel(layer)
            assert _same_bits(layer(x), theirs)


def _has_kernel(layer: torch.nn.Module) -> bool:
    return type(layer.weight).__name__ == "TinyGemmWeightQBitsTensor"


@pytest.mark.parametrize("word", ["float8", "int2"])
def test_gradients_are_quantos(word):
    layer = _layer(word, 64, 16, torch.float32)
    found = []
    for product in (
        lambda x: multiplied(x, layer.weight, layer.bias),
        lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias),
    ):
        x = torch.linspace(-1, 1, 3 * 64).reshape(3, 64).requires_grad_()
        layer.bias.requires_grad_().grad = None
        product(x).square().sum().backward()
        found.append((x.grad, layer.bias.grad))
    for ours, theirs in zip(*found, strict=True):
        assert _same_bits(ours, theirs)


def test_a_bias_in_float32_makes_a_sum_in_float32():
    layer = _layer("int2", 64, 16, torch.bfloat16)
    x, bias = torch.ones(2, 64, dtype=torch.bfloat16), torch.full((16,), 1 / 3)
    with torch.no_grad():
        theirs = torch.nn.functional.linear(x, layer.weight, bias)
        assert _same_bits(multiplied(x, layer.weight, bias), theirs)


def test_float8_that_holds_a_nan_is_left_to_torch_also_when_it_comes_later():
    scale = torch.ones((2, 1), dtype=torch.bfloat16)
    assert made_plain(_float8(torch.tensor([[1, 0x7F], [2, 3]]), scale)) is None
    assert made_plain(_float8(torch.tensor([[1, 0xFF], [2, 3]]), scale)) is None
    weight = _float8(torch.tensor([[1, 0x7E], [2, 3]]), scale)
    assert made_plain(weight) is not None
    weight._data.view(torch.uint8)[0, 0] = 0xFF
    assert made_plain(weight) is None


def test_scales_that_would_overflow_are_left_to_torch():
    codes = torch.tensor([[1, 2], [3, 4]])
    assert made_plain(_float8(codes, torch.full((2, 1), 2.0**9, dtype=torch.bfloat16))) is None
    assert made_plain(_float8(codes, torch.full((2, 1), 2.0**7, dtype=torch.bfloat16))) is not None


def test_where_the_smallest_numbers_are_flushed_to_zero_torch_converts():
    weight = _float8(torch.tensor([[1, 2], [3, 4]]), torch.ones((2, 1), dtype=torch.bfloat16))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush")
    try:
        assert made_plain(weight) is None
    finally:
        torch.set_flush_denormal(False)


def test_other_dtypes_than_the_weights_and_traced_graphs_are_left_to_quanto():
    layer = _layer("int2", 64, 16, torch.bfloat16)
    with torch.no_grad():
        assert multiplied(torch.ones(2, 64), layer.weight, None) is None
    assert made_plain(torch.ones(2, 2)) is None


# --- other devices, as far as they can be asked about without one ----------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_bytes_are_unpacked_alike_where_there_is_no_shift(bits):
    packed = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    for places in range(0, 8, bits):
        shifted = [cures._shifted(packed, places, on) for on in ("cpu", "mps")]
        assert torch.equal(*shifted)


@pytest.mark.parametrize("word", ["float8", "int8", "int4", "int2"])
def test_what_a_device_has_no_numbers_for_is_refused_before_anything_is_read(word):
    layer = Layer("proj", 256, 64, bias=False)
    assert unsupported(layer, word, "bfloat16", "cuda:1") == ""
    assert ("float8" in unsupported(layer, word, "bfloat16", "mps")) == (word == "float8")
