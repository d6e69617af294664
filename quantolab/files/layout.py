"""Safetensors files as quantolab writes and reads them: weights on 64-byte boundaries.

A kernel that is handed weights straight from a memory-mapped file crashes if they don't start
where it expects (int8 with bfloat16 on a CPU does). safetensors' own writer aligns to 8 bytes.
Ours pads the header with spaces and orders the tensors, since the format refuses holes:

- first those whose size is a multiple of 64 bytes, in the model's order: every one on a boundary;
- then the odd-sized ones of 64 bytes or more, each on a boundary, the gaps behind them filled
  with tensors of less than 64 bytes (the scales of activations, one value each);
- last the small ones that are left.

So every tensor of 64 bytes or more starts on a boundary, every int8 weight however small on 16
bytes, and names and values are just those of the state dict. Only if there are too few small
tensors, which no common model has seen, is a filler put in, and then an index beside the file:
readers that take their names from an index never see fillers.

Not every tensor can start on a boundary. Each begins where the one before ends, so after a scale
of two bytes the next begins two bytes on; only a filler behind each small tensor would change
that. Readers without an index (safetensors itself, Diffusers' and transformers' for one file)
would report hundreds of unknown weights, for tensors that no kernel reads as vectors: a scale is
one value, and a bias is read by code that takes any address.

Reading trusts nothing: sizes, names, types and offsets are checked before a byte of payload is
looked at. Neighbouring tensors are read together while others are put in their places, and each
starts on a boundary, wherever it lay in the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError, BrokenModelError
from ..units import parse_bytes
from .headers import DTYPE_WORDS, broken, read_header

ALIGNMENT = 64
"""Bytes; the widest vector registers and a cache line."""

FILLER = "quantolab.padding."
"""How names of fillers begin."""


_DTYPES = {name: getattr(torch, word) for name, word in DTYPE_WORDS.items()}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype that a header means by a name such as ``BF16``.

    Raises
    ------
    BrokenModelError
        If it is none.
    """
    if name not in _DTYPES:
        known = ", ".join(sorted(_DTYPES))
        raise BrokenModelError(f"{name!r} is no dtype of a safetensors file; known: {known}")
    return _DTYPES[name]


@dataclass(frozen=True)
class Spec:
    """What a file's header says of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """The tensors of one module, their values made only when asked for."""

    specs: tuple[Spec, ...]
    values: Callable[[], list[torch.Tensor]]
    """Returns plain tensors, in the order of `specs`."""


@dataclass(frozen=True)
class Entry:
    """A tensor and where its bytes lie in a file's payload."""

    spec: Spec
    begin: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.begin + self.spec.nbytes


@dataclass(frozen=True)
class FileLayout:
    """One file before it is written, or after its header was read."""

    name: str
    entries: tuple[Entry, ...]
    """In the order of their bytes, fillers among them."""
    header_bytes: int
    """From the file's start to the payload's."""
    notes: tuple[tuple[str, str], ...] = ()
    """What the header says beside the tensors, by name."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.header_bytes + (self.entries[-1].end if self.entries else 0)

    @property
    def names(self) -> list[str]:
        """Names of the real tensors."""
        return [e.spec.name for e in self.entries if not e.spec.name.startswith(FILLER)]


def specs_of(parts: Iterable[Piece]) -> list[Spec]:
    """Return what all pieces hold, in order."""
    return [spec for piece in parts for spec in piece.specs]


def plan_files(
    specs: Iterable[Spec],
    stem: str,
    max_shard_size: int | str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[FileLayout]:
    """Return where each tensor will lie: one file, or shards with Diffusers' names.

    Parameters
    ----------
    specs : iterable of Spec
        Tensors, in the model's own order.
    stem : str
        Start of the files' names.
    max_shard_size : int or str, optional
        Bytes of payload that a shard may have, ``"5GB"`` for example; one tensor that is
        larger gets a shard of its own. None writes one file.
    notes : mapping of str to str, optional
        What each file's header says beside its tensors.

    Raises
    ------
    ArgumentError
        If the size isn't one, or a dtype can't be stored.
    """
    limit = None if max_shard_size is None else parse_bytes(max_shard_size)
    shards: list[list[Spec]] = [[]]
    filled = 0
    for spec in specs:
        if spec.dtype not in _DTYPE_NAMES:
            raise ArgumentError(f"{spec.name!r} has dtype {spec.dtype}, which no file can hold")
        size = -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        if limit is not None and shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += size
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    else:
        count = len(shards)
        names = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    said = tuple((notes or {}).items())
    return [_layout(name, shard, said) for name, shard in zip(names, shards, strict=True)]


def index_text(layouts: list[FileLayout]) -> str | None:
    """Return the text of the index file, or None where readers need none.

    One file without fillers needs none. With fillers it does: Diffusers and Quanto take the
    tensors' names from the index, and would otherwise report the fillers as unknown weights.
    """
    has_fillers = any(len(layout.names) < len(layout.entries) for layout in layouts)
    if len(layouts) == 1 and not has_fillers:
        return None
    total = sum(entry.spec.nbytes for la in layouts for entry in la.entries)
    weight_map = {name: layout.name for layout in layouts for name in layout.names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)


def read_layout(path: Path) -> FileLayout:
    """Return what a safetensors file says it holds, after checking that it can be so.

    Raises
    ------
    BrokenModelError
        If it is truncated, has a header of absurd length or that is no JSON object, or names
        tensors twice, of unknown type, with wrong sizes, overlapping, or with holes.
    """
    header, header_bytes, size = read_header(path)
    entries = [_entry(path, name, said) for name, said in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    reached = 0
    for entry in entries:
        if entry.begin != reached:
            raise broken(
                path,
                f"{entry.spec.name!r} starts at byte {entry.begin} of the payload where "
                f"{reached} was expected: tensors overlap or leave holes",
            )
        reached = entry.end
    if header_bytes + reached != size:
        raise broken(
            path,
            f"its header describes {header_bytes + reached} bytes and it has {size}: truncated, or "
            "with something behind its end",
        )
    return FileLayout(path.name, tuple(entries), header_bytes)


def _layout(name: str, specs: list[Spec], notes: tuple[tuple[str, str], ...]) -> FileLayout:
    layout = FileLayout(name, tuple(_placed(specs)), 0, notes)
    return FileLayout(name, layout.entries, len(header_bytes_of(layout)), notes)


def _placed(specs: list[Spec]) -> list[Entry]:
    """Return tensors in the order that the module's docstring describes, with their places."""
    even = [s for s in specs if s.nbytes % ALIGNMENT == 0]
    odd = [s for s in specs if s.nbytes % ALIGNMENT and s.nbytes > ALIGNMENT]
    # By the steps in which they may be placed, so that each stays aligned to its own.
    small = [s for s in specs if s.nbytes < ALIGNMENT and s.nbytes]
    small.sort(key=lambda s: (-_step(s), -s.nbytes))
    entries: list[Entry] = []

    def place(spec: Spec) -> int:
        entries.append(Entry(spec, entries[-1].end if entries else 0))
        return -entries[-1].end % ALIGNMENT

    def fill(gap: int) -> None:
        count = sum(e.spec.name.startswith(FILLER) for e in entries)
        place(Spec(f"{FILLER}{count}", torch.uint8, (gap,)))

    for spec in even:
        place(spec)
    for number, spec in enumerate(odd):
        gap = place(spec)
        while gap:
            fits = (s for s in small if s.nbytes <= gap and not gap % _step(s))
            chosen = next(fits, None)
            if chosen is None:
                break
            small.remove(chosen)
            gap = place(chosen)
        if gap and (number + 1 < len(odd) or (small and gap % _step(small[0]))):
            fill(gap)
    for spec in small:
        place(spec)
    return entries


def _step(spec: Spec) -> int:
    """Return the bytes to a multiple of which a small tensor is aligned.

    The kernel of int8 weights reads 16 at a time, however few there are.
    """
    is_weight = spec.dtype == torch.int8 and spec.nbytes % 16 == 0
    return 16 if is_weight else spec.dtype.itemsize


def header_bytes_of(layout: FileLayout) -> bytes:
    """Return length and header, padded so that the payload starts on a boundary."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **dict(layout.notes)}}
    for entry in layout.entries:
        header[entry.spec.name] = {
            "dtype": _DTYPE_NAMES[entry.spec.dtype],
            "shape": list(entry.spec.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _entry(path: Path, name: str, said: object) -> Entry:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken(path, f"{name!r} isn't described by dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise broken(path, f"{name!r} has dtype {dtype!r}; known: {', '.join(sorted(_DTYPES))}")
    if not _are_counts(shape):
        raise broken(path, f"{name!r} has a shape that isn't a list of whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise broken(path, f"{name!r} has data_offsets that aren't two whole numbers")
    count = 1
    for size in shape:  # Python's integers don't overflow, torch's do
        count *= size
    expected = count * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise broken(
            path,
            f"{name!r} takes {offsets[1] - offsets[0]} bytes, but {dtype} of shape {shape} "
            f"needs {expected}",
        )
    return Entry(Spec(name, _DTYPES[dtype], tuple(shape)), offsets[0])


def _are_counts(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(n) is int and 0 <= n < 2**62 for n in value)
    )
