"""Tensors go into safetensors files piece by piece, digested on the way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import xxhash

from .layout import FILLER, FileLayout, Piece, Spec, header_bytes_of

DIGEST = "xxh3_128"
"""The digest that is written beside files. It guards against accidents, at 12 GB/s here where
sha256 makes 0.9 and crc32 1.3; against intent no digest kept in the same folder would."""

_CHUNK = 1 << 20  # bytes digested and written at a time: they stay in the processor's cache


def write_files(parts: Iterable[Piece], layouts: list[FileLayout], folder: Path) -> dict[str, str]:
    """Write weights piece by piece, never holding a second copy, and return their digests.

    Parameters
    ----------
    parts : iterable of Piece
        The same, in the same order, from which the layouts were planned.
    layouts : list of FileLayout
        From `plan_files`.
    folder : Path
        Where to write; files there are replaced.

    Returns
    -------
    dict
        Digest of each file by its name.
    """
    waiting = _Waiting(parts)
    digests = {}
    for layout in layouts:
        digest = xxhash.xxh3_128()
        with (folder / layout.name).open("wb", buffering=_CHUNK) as file:
            for chunk in _file_chunks(layout, waiting):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        digests[layout.name] = digest.hexdigest()
    return digests


def digest_of(data: bytes) -> str:
    """Return the digest of a small file's bytes."""
    return xxhash.xxh3_128(data).hexdigest()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes, on the CPU and in row order; a view where they lie so already."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


class _Waiting:
    """Tensors taken from pieces as a file needs them; those whose turn comes later wait.

    Only odd-sized and small tensors ever wait long: the others stand in the pieces' own order.
    """

    def __init__(self, parts: Iterable[Piece]) -> None:
        self._parts = iter(parts)
        self._values: dict[str, torch.Tensor] = {}

    def take(self, spec: Spec) -> torch.Tensor:
        while spec.name not in self._values:
            piece = next(self._parts)
            names = (s.name for s in piece.specs)
            self._values.update(zip(names, piece.values(), strict=True))
        value = self._values.pop(spec.name)
        if (tuple(value.shape), value.dtype) != (spec.shape, spec.dtype):
            raise RuntimeError(f"{spec.name!r} isn't the tensor that was planned")
        return value


def _file_chunks(layout: FileLayout, waiting: _Waiting) -> Iterator[bytes | memoryview]:
    yield header_bytes_of(layout)
    for entry in layout.entries:
        if entry.spec.name.startswith(FILLER):
            yield bytes(entry.spec.nbytes)
            continue
        view = raw_bytes(waiting.take(entry.spec))
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]
