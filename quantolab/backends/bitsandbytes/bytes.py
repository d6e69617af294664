"""Bytes of a layer in bitsandbytes' form, from its shape alone. Never imports torch.

The tests hold them equal, to the byte, to what quantized models really hold.
"""

from __future__ import annotations

from ...shapes import Layer
from ...weights import weights_of

BLOCK = 64
"""Values that share a scale in 4 bits, whatever rows they stand in."""

_SCRATCH = 1 << 25
_SCALE = 4  # bytes: float32


def layer_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the bytes of one layer's weight (data and scales), no bias.

    Parameters
    ----------
    layer : Layer
        Its shape.
    word : str
        Weights word, one of bitsandbytes'.
    dtype : str
        Compute dtype; nothing is held in it.
    """
    count = layer.parameters
    if weights_of(word).bits == 8:
        return count + layer.out_features * _SCALE
    return -(-count // 2) + -(-count // BLOCK) * _SCALE


def quantizing_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the most that quantizing one layer takes on a CPU, its result included."""
    return layer_bytes(layer, word, dtype) + _SCRATCH + 12 * layer.parameters


def unsupported(layer: Layer, word: str, dtype: str, device: str) -> str:
    """Return why a layer can't have a word; empty if it can."""
    return ""
