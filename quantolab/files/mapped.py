"""Weights of safetensors files as they are read to be quantized: mapped, and let go layer by layer.

A page of a mapped file counts as the process's from its first use until it is told to go or the
file is closed. Read to the end, a model lies in memory twice: as quantized, and as its whole file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..errors import BrokenModelError
from .layout import Entry, Spec, read_layout


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
        self._maps: list[mmap.mmap] = []
        self._places: dict[str, tuple[mmap.mmap, int, Entry]] = {}
        for path in paths:
            layout = read_layout(path)
            try:
                with path.open("rb") as file:
                    # Copied where it is written to: torch wants memory that can be.
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise BrokenModelError(f"{path} can't be read: {error}") from error
            self._maps.append(mapped)
            for entry in layout.entries:
                self._places[entry.spec.name] = mapped, layout.header_bytes, entry

    def __getitem__(self, name: str) -> torch.Tensor:
        mapped, start, entry = self._places[name]
        spec = entry.spec
        if not spec.nbytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        count = spec.nbytes // spec.dtype.itemsize
        flat = torch.frombuffer(mapped, dtype=spec.dtype, count=count, offset=start + entry.begin)
        return flat.reshape(spec.shape)

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
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
