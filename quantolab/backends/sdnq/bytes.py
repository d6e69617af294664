"""Bytes of a layer in SDNQ's form, from its shape alone. Never imports torch.

Source of the formulae: sdnq 0.2.8, ``quantizer.py`` (groups, scales) and ``packed_int``. The tests
hold them equal, to the byte, to what quantized models really hold.
"""

from __future__ import annotations

import math

from ...shapes import Layer
from ...weights import COMPUTE_BYTES, Weights, weights_of

_SCRATCH = 1 << 26  # bytes; more than some rows take while they are quantized
_SCALE = 4  # bytes: scales and zero points are float32


def rank_of(layer: Layer, weights: Weights) -> int:
    """Return the rank of what is kept beside a layer's values: a matrix has one of its own."""
    return min(weights.rank or 0, layer.in_features, layer.out_features)


def group_size(layer: Layer, weights: Weights) -> int:
    """Return how many weights of a row share one scale."""
    columns, bits = layer.in_features, weights.bits or 8
    if weights.group == 0:
        return columns
    size = weights.group or 2 ** (bits + 2 + bool(rank_of(layer, weights)))
    if size >= columns:
        return columns
    count = columns // size
    while count * size != columns:
        count -= 1
        if count <= 1:
            return columns
        size = columns // count
    return size


def layer_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the bytes of one layer's weight (data, scales, zero points, SVD), no bias.

    Parameters
    ----------
    layer : Layer
        Its shape.
    word : str
        Weights word, one of SDNQ's.
    dtype : str
        Compute dtype, in which the thin matrices of an SVD are held.
    """
    weights = weights_of(word)
    data = -(-layer.parameters * (weights.bits or 8) // 8)
    groups = layer.out_features * (layer.in_features // group_size(layer, weights))
    thin = rank_of(layer, weights) * (layer.in_features + layer.out_features)
    return data + groups * _SCALE * (2 if weights.grouped else 1) + thin * COMPUTE_BYTES[dtype]


def quantizing_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the most that quantizing one layer takes on a CPU, its result included.

    The arithmetic goes some rows at a time, but for an SVD, which needs the whole matrix in
    float32, and what is left of it, several times.
    """
    needed = layer_bytes(layer, word, dtype) + _SCRATCH
    if weights_of(word).rank:
        needed += 6 * 4 * layer.parameters
    return needed


def unsupported(layer: Layer, word: str, dtype: str, device: str) -> str:
    """Return why a layer can't have a word; empty if it can."""
    bits = weights_of(word).bits or 8
    step = 8 // math.gcd(bits, 8)
    if layer.parameters % step:
        return f"SDNQ packs {step} values of {bits} bits, and it has {layer.parameters}"
    return ""
