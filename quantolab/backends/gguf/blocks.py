"""Weights as GGUF's blocks of 32 values: carried over where a block can say the same, else made.

A block of Q8_0 is ``d * q``, one of Q4_1 ``d * q + m``: what Quanto's int8, and its int4 and int2,
are made of, in groups of 32 or more. Only scales differ: GGUF's are float16.
"""

from __future__ import annotations

import gguf
import numpy as np

from ...errors import UnsupportedError
from ..values import Values

BLOCK = 32
"""Values that share a scale, in all types that are written here."""

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Those that the gguf package can write, the most precise first; the K and IQ types it only reads.
What it also writes and other programs don't read in pictures' models is left out."""

_SIGNED = {"Q8_0": 8, "Q4_0": 4}  # bits of values around 0
_SHIFTED = {"Q4_1": 4}  # bits of values above a smallest one
_WORST = {"Q8_0": 0.02, "Q5_1": 0.1, "Q5_0": 0.12, "Q4_1": 0.2, "Q4_0": 0.25}


def best_type(values: Values | None, bits: int) -> str:
    """Return the type that says the most of what a weight is.

    Parameters
    ----------
    values : Values or None
        What it is made of; None where it is more than values, scales and zero points.
    bits : int
        Of one value.
    """
    if bits > 5:
        return "Q8_0"
    shifted = values is None or values.zero is not None
    return f"Q{max(bits, 4)}_{int(shifted)}"


def carried(values: Values, kind: str) -> np.ndarray | None:
    """Return a weight's own values and scales as blocks; None where blocks can't say the same.

    Parameters
    ----------
    values : Values
        Of shape (out_features, in_features).
    kind : str
        One of `TYPES`.

    Returns
    -------
    np.ndarray
        Bytes of shape (out_features, bytes of a row).
    """
    rows, columns = values.data.shape
    shifted = values.zero is not None
    room = (_SHIFTED if shifted else _SIGNED).get(kind, 0)
    whole = not values.data.dtype.is_floating_point and (values.kind[0] == "u") == shifted
    if not whole or values.bits > room or values.group % BLOCK or columns % BLOCK:
        return None
    parts = [values.scale] + ([values.zero] if values.zero is not None else [])
    halves = [part.numpy().astype(np.float16) for part in parts]
    for half, part in zip(halves, parts, strict=True):
        if not np.array_equal(half.astype(np.float32), part.numpy()):
            return None
    count = rows * columns // BLOCK
    heads = [np.repeat(half, values.group // BLOCK, axis=1).reshape(count, 1) for half in halves]
    numbers = values.data.numpy().reshape(count, BLOCK)
    if room == 4:
        numbers = numbers.astype(np.int16) + (0 if shifted else 8)
        low, high = numbers[:, : BLOCK // 2], numbers[:, BLOCK // 2 :]
        numbers = (low | (high << 4)).astype(np.uint8)
    blocks = np.concatenate([*(h.view(np.uint8) for h in heads), numbers.view(np.uint8)], axis=1)
    return np.ascontiguousarray(blocks.reshape(rows, -1))


def made(weight: np.ndarray, kind: str) -> np.ndarray:
    """Return a weight quantized anew, as blocks; arguments and result as for `carried`.

    Raises
    ------
    UnsupportedError
        If the blocks are nowhere near the weight: float16 doesn't hold its scales.
    """
    blocks: np.ndarray = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    apart = np.linalg.norm(plain(blocks, kind) - weight)
    if not apart <= _WORST[kind] * np.linalg.norm(weight):
        raise UnsupportedError(
            f"in {kind} it isn't what it was (its values don't fit float16 scales)"
        )
    return blocks


def plain(blocks: np.ndarray, kind: str) -> np.ndarray:
    """Return what blocks stand for, in float32, by the gguf package's own arithmetic."""
    found: np.ndarray = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    return found


def blocks_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Return the bytes of a weight in a type."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(np.prod(shape)) // int(block) * int(size)
