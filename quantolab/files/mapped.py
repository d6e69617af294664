"""Weights of safetensors files as they are read to be quantized: mapped, and let go layer by layer.

A page of a mapped file counts as the process's from its first use until it is told to go or the
file is closed. Read to the end, a model lies in memory twice: as quantized, and as its whole file.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import BrokenModelError, is_out_of_memory
from .layout import Entry, Spec, read_layout

_MOST = 256  # maps at once


class MappedWeights(Mapping[str, torch.Tensor]):
    """Tensors of one or several safetensors files by name, read when they are used.

    Every tensor is a view of its file, wherever it lies there: its address may be odd, and it
    keeps the file mapped. What is written into it stays in this process, until `release`.

    Parameters
    ----------
    paths : iterable of Path
        The files.

    Raises
    ------
    BrokenModelError
        If one can't be read, or is no whole safetensors file (see `files.read_layout`).
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, tuple[BinaryIO, int, Entry]] = {}
        self._whole: dict[BinaryIO, mmap.mmap] = {}
        self._live: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        for path in paths:
            layout = read_layout(path)
            try:
                file = path.open("rb")
            except OSError as error:
                raise BrokenModelError(f"{path} can't be read: {error}") from error
            weakref.finalize(self, file.close)
            for entry in layout.entries:
                self._places[entry.spec.name] = file, layout.header_bytes, entry

    def __getitem__(self, name: str) -> torch.Tensor:
        file, start, entry = self._places[name]
        spec = entry.spec
        if not spec.nbytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        mapped, offset = self._map(file, start + entry.begin, spec.nbytes)
        count = spec.nbytes // spec.dtype.itemsize
        flat = torch.frombuffer(mapped, dtype=spec.dtype, count=count, offset=offset)
        return flat.reshape(spec.shape)

    def _map(self, file: BinaryIO, begin: int, length: int) -> tuple[mmap.mmap, int]:
        """Return a map that holds some bytes of a file, and where in it they begin.

        Each tensor has its own: memory that may be written to is promised by the system, and it
        need not promise the whole file at once.
        """
        if len(self._live) > _MOST:
            begin, length, offset = 0, 0, begin  # the whole file: each map takes a file handle
        else:
            offset = begin % mmap.ALLOCATIONGRANULARITY
            begin, length = begin - offset, length + offset
        known = self._whole.get(file) if not length else None
        if known is not None:
            return known, offset
        try:
            mapped = mmap.mmap(
                file.fileno(),
                length,
                access=mmap.ACCESS_COPY,  # copied where it is written to: torch wants it so
                offset=begin,
            )
        except (OSError, ValueError) as error:
            if is_out_of_memory(error):
                raise MemoryError(f"no memory to map {file.name}") from error
            raise BrokenModelError(f"{file.name} can't be read: {error}") from error
        self._live.add(mapped)
        if not length:
            self._whole[file] = mapped
        return mapped, offset

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def spec(self, name: str) -> Spec:
        """Return a tensor's name, dtype and shape, from the file's header alone."""
        return self._places[name][2].spec

    def release(self) -> None:
        """Let go the memory of what was read; a tensor that is used again is read again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            for mapped in self._live:
                mapped.madvise(mmap.MADV_DONTNEED)
