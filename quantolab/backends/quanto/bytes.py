"""Bytes of a layer in Quanto's forms, from its shape alone. Never imports torch.

Source of the formulae: optimum-quanto 0.2.7, ``nn/qmodule.py`` (group size), ``tensor/packed.py``
(packing) and ``tensor/optimizers`` (scale and shift). The tests hold them equal, to the byte, to
what quantized models really hold.
"""

from __future__ import annotations

from ...shapes import Layer
from ...weights import COMPUTE_BYTES, weights_of

_ROWS = 1 << 21  # values; as many as `row_wise` quantizes at a time


def group_size(in_features: int) -> int | None:
    """Return how many weights of a row share one int4/int2 scale; None is the whole row.

    Quanto takes the first of 128, 96, 64, 32 that divides `in_features`, if that is over 128.
    """
    if in_features <= 128:
        return None
    return next((size for size in (128, 96, 64, 32) if in_features % size == 0), None)


def layer_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the bytes of one layer's weight (data, scales, shifts, activation scales), no bias.

    Parameters
    ----------
    layer : Layer
        Its shape.
    word : str
        Weights word, one of Quanto's.
    dtype : str
        Compute dtype, in which scales and shifts are held.
    """
    weights, unit = weights_of(word), COMPUTE_BYTES[dtype]
    activation_scales = 2 * unit  # input_scale and output_scale, one value each
    if not weights.grouped:
        return layer.parameters + layer.out_features * unit + activation_scales
    rows, columns = layer.out_features, layer.in_features
    if group := group_size(layer.in_features):
        rows, columns = layer.parameters // group, group
    # Quanto reduces a single row along the wrong axis: one scale a column instead of one a row.
    scales = columns if rows == 1 else rows
    return -(-rows // weights.per_byte) * columns + 2 * scales * unit + activation_scales


def unsupported(layer: Layer, word: str, dtype: str, device: str) -> str:
    """Return why a layer can't have a word; empty if it can: Quanto's fit all layers."""
    if weights_of(word).floating and device.partition(":")[0] == "mps":
        return "torch has no float8 on MPS (pytorch issue 148420); int8 holds as many bytes"
    return ""


def scratch_bytes(dtype: str) -> int:
    """Return what some rows take while they are quantized: cast, scaled, and as whole numbers."""
    return _ROWS * (2 * COMPUTE_BYTES[dtype] + 1)


def quantizing_bytes(layer: Layer, word: str, dtype: str) -> int:
    """Return the most that quantizing one layer takes on a CPU, its result included.

    The arithmetic goes a few rows at a time (`quantolab.backends.quanto.row_wise`), except for
    weights of one row and those whose rows don't fill whole bytes: Quanto computes these in
    whole tensors, two in the compute dtype and one of bytes at the end of its rounding. int4 in
    bfloat16 in groups of 128 is then repacked for its kernel, if out_features is a multiple of
    16: into a second copy, or, where it is none of 128, through 32-bit integers.
    """
    weights = weights_of(word)
    count, result = layer.parameters, layer_bytes(layer, word, dtype)
    group = group_size(layer.in_features) if weights.grouped else None
    rows = layer.out_features if group is None else count // group
    needed = result + scratch_bytes(dtype)
    if layer.out_features == 1 or rows % weights.per_byte:
        needed += 2 * count * COMPUTE_BYTES[dtype] + count
    has_kernel = group == 128 and layer.out_features % 16 == 0
    if word == "int4" and dtype == "bfloat16" and has_kernel:
        needed += result if layer.out_features % 128 == 0 else 6 * count
    return needed
