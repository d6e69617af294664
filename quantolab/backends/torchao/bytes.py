"""Bytes of a layer in torchao's form, from its shape alone. Never imports torch.

Source of the formulae: torchao 0.18.0, ``quantize_/workflows``. The tests hold them equal, to the
byte, to what quantized models really hold.
"""

from __future__ import annotations

from ...errors import UnsupportedError
from ...shapes import Layer
from ...weights import weights_of

_SCRATCH = 1 << 26  # bytes; more than some rows take while they are quantized
_SCALE, _ZERO_POINT = 4, 1  # bytes: float32, and an int8 that is always 0
_NO_INT4 = (
    "torchao has no int4 that runs on a CPU (its packed classes ask for mslk or CUDA, and the "
    "unpacked ones hold a byte a weight), and quantolab makes none for other devices yet: "
    "sdnq:uint4-g128 and int4 are 4 bits on every device"
)


def layer_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the bytes of one layer's weight (data, scales, zero points), no bias.

    Parameters
    ----------
    layer : Layer
        Its shape.
    word : str
        Weights word, one of torchao's.
    dtype : str
        Compute dtype; nothing is held in it.

    Raises
    ------
    UnsupportedError
        For int4, which nothing here holds.
    """
    weights = weights_of(word)
    if weights.bits == 4:
        raise UnsupportedError(f"{word}: {_NO_INT4}")
    groups = layer.out_features * (layer.in_features // (weights.group or layer.in_features))
    return layer.parameters + groups * (_SCALE if weights.floating else _SCALE + _ZERO_POINT)


def quantizing_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the most that quantizing one layer takes on a CPU, its result included."""
    return layer_bytes(layer, word, dtype) + _SCRATCH


def unsupported(layer: Layer, word: str, dtype: str, device: str) -> str:
    """Return why a layer can't have a word; empty if it can."""
    weights = weights_of(word)
    if weights.bits == 4:
        return _NO_INT4
    if weights.group and layer.in_features % weights.group:
        return f"its rows of {layer.in_features} values aren't in whole groups of {weights.group}"
    return ""
