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
import os
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import xxhash

from ...errors import ArgumentError, BrokenModelError
from ...units import parse_bytes
from .generic import Piece, Spec, pieces

ALIGNMENT = 64
"""Bytes; the widest vector registers and a cache line."""

FILLER = "quantolab.padding."
"""How names of fillers begin."""

DIGEST = "xxh3_128"
"""The digest that is written beside files. It guards against accidents, at 12 GB/s here where
sha256 makes 0.9 and crc32 1.3; against intent no digest kept in the same folder would."""

INDEX = ".safetensors.index.json"
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_CHUNK = 1 << 20  # bytes digested and written at a time: they stay in the processor's cache
_BLOCK = 1 << 26  # bytes of neighbouring tensors that are read at a time, into one piece of memory
_SMALL_BLOCK = 1 << 23  # the same where that memory is needed for a moment only
_AHEAD = 2  # blocks that are read before they are asked for, each by a thread of its own

# Names of dtypes in a safetensors header; source: the format's specification.
_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


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

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.header_bytes + (self.entries[-1].end if self.entries else 0)

    @property
    def names(self) -> list[str]:
        """Names of the real tensors."""
        return [e.spec.name for e in self.entries if not e.spec.name.startswith(FILLER)]


def file_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of the file that `save` writes for a module, not sharded.

    Counted from shapes alone: nothing is converted or written.
    """
    return sum(layout.nbytes for layout in plan_files(specs_of(pieces(module)), "model"))


def specs_of(parts: Iterable[Piece]) -> list[Spec]:
    """Return what all pieces hold, in order."""
    return [spec for piece in parts for spec in piece.specs]


def plan_files(
    specs: Iterable[Spec], stem: str, max_shard_size: int | str | None = None
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
    return [_layout(name, shard) for name, shard in zip(names, shards, strict=True)]


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
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise _broken(
                    path, f"its first 8 bytes don't give the length of a header in {size} bytes"
                )
            text = file.read(length)
    except OSError as error:
        raise _broken(path, str(error)) from error
    if len(text) != length:
        raise _broken(path, "it ends inside its header")
    entries = [_entry(path, name, said) for name, said in _header(path, text).items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    reached = 0
    for entry in entries:
        if entry.begin != reached:
            raise _broken(
                path,
                f"{entry.spec.name!r} starts at byte {entry.begin} of the payload where "
                f"{reached} was expected: tensors overlap or leave holes",
            )
        reached = entry.end
    if 8 + length + reached != size:
        raise _broken(
            path,
            f"its header describes {8 + length + reached} bytes and it has {size}: truncated, or "
            "with something behind its end",
        )
    return FileLayout(path.name, tuple(entries), 8 + length)


def read_tensors(
    path: Path, layout: FileLayout, digest: str | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a file's tensors while digesting the same bytes.

    Parameters
    ----------
    path : Path
        The file.
    layout : FileLayout
        From `read_layout`.
    digest : str, optional
        What the whole file's digest must be; None reads without digesting.

    Raises
    ------
    BrokenModelError
        If the file ends early, or, before the last tensors, if the digest is another one.
    """
    digests = {} if digest is None else {path.name: digest}
    with Reading([(path, layout)], digests, lasting=False) as reading:
        yield from reading


class Reading:
    """Tensors of files in the files' own order, read ahead by other threads and digested here.

    Reading starts at once. Used as a context, so that the threads end with it.

    Two threads read, since one is kept busy less by the copying than by the system, which gives
    new memory page by page.

    Parameters
    ----------
    files : iterable of (Path, FileLayout)
        Layouts from `read_layout`.
    digests : mapping of str to str
        What the digest of each file must be, by its name; those that aren't there aren't digested.
    lasting : bool
        Whether the tensors stay as they are: they then share pieces of 64 MB, each of which is
        freed with the last of its tensors. Otherwise pieces are small, for tensors that are
        converted or moved; one that isn't must be cloned, lest it keep the others' memory.

    Raises
    ------
    BrokenModelError
        While iterating: if a file ends early or, before its last tensors, has another digest.
    """

    def __init__(
        self,
        files: Iterable[tuple[Path, FileLayout]],
        digests: Mapping[str, str],
        *,
        lasting: bool,
    ) -> None:
        self.lasting = lasting
        size = _BLOCK if lasting else _SMALL_BLOCK
        self._files = [(_File(path, digests.get(path.name)), layout) for path, layout in files]
        self._blocks = (b for file, layout in self._files for b in _blocks(file, layout, size))
        self._threads = ThreadPoolExecutor(_AHEAD, thread_name_prefix="quantolab-reading")
        self._coming: deque[tuple[_Block, torch.Tensor, Future]] = deque()
        self._start(_AHEAD)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_) -> None:
        self._threads.shutdown(cancel_futures=True)
        for file, _ in self._files:
            file.close()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor), fillers left out; each tensor starts on a boundary."""
        while self._coming:
            block, memory, done = self._coming.popleft()
            done.result()
            self._start(1)
            block.digest(memory)
            yield from block.tensors(memory)

    def _start(self, count: int) -> None:
        for block in islice(self._blocks, count):
            memory = fresh_memory(block.nbytes)
            self._coming.append((block, memory, self._threads.submit(block.read, memory)))


class _File:
    """A file that several threads read, opened once, so that all see the same one."""

    def __init__(self, path: Path, digest: str | None) -> None:
        self.path = path
        self._expected = digest
        self._hasher = None if digest is None else xxhash.xxh3_128()
        self._lock, self._opened = threading.Lock(), None

    def read(self, view: memoryview, start: int) -> None:
        """Fill a view with the file's bytes from `start` on."""
        try:
            with self._lock:
                if self._opened is None:
                    self._opened = self.path.open("rb", buffering=0)
            position = 0
            while position < len(view):
                count = self._read_at(view[position:], start + position)
                if not count:
                    raise _broken(self.path, "it ended while it was read")
                position += count
        except OSError as error:
            raise _broken(self.path, str(error)) from error

    def _read_at(self, view: memoryview, start: int) -> int | None:
        if hasattr(os, "preadv"):
            return os.preadv(self._opened.fileno(), [view], start)
        with self._lock:  # Windows: a file has one position only
            self._opened.seek(start)
            return self._opened.readinto(view)

    def digest(self, view: memoryview) -> None:
        """Digest the bytes that follow those digested before."""
        if self._hasher is not None:
            self._hasher.update(view)

    def check(self) -> None:
        """Raise BrokenModelError if the bytes digested so far have another digest."""
        if self._hasher is not None and self._hasher.hexdigest() != self._expected:
            raise BrokenModelError(
                f"{self.path} has changed since it was saved: its digest ({DIGEST}) is "
                f"{self._hasher.hexdigest()}, and {self._expected} was recorded"
            )

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


@dataclass(frozen=True)
class _Block:
    """Neighbouring tensors of a file, read into one piece of memory."""

    file: _File
    entries: tuple[Entry, ...]
    margin: int
    """Bytes before the first tensor, so that memory and file have the same boundaries."""
    header_bytes: int
    """Of the file: where its tensors begin."""
    is_first: bool
    is_last: bool
    """Whether the file begins, or ends, with it."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory, the margin included."""
        return self.margin + self.entries[-1].end - self.entries[0].begin if self.entries else 0

    def read(self, memory: torch.Tensor) -> None:
        """Fill the memory, in few calls: every one waits for Python."""
        if self.entries:
            self.file.read(self._payload(memory), self.header_bytes + self.entries[0].begin)

    def digest(self, memory: torch.Tensor) -> None:
        """Digest what was read, block after block; raise if the last one shows a change."""
        if self.is_first:
            header = memoryview(bytearray(self.header_bytes))
            self.file.read(header, 0)
            self.file.digest(header)
        if self.entries:
            self.file.digest(self._payload(memory))
        if self.is_last:
            self.file.check()

    def _payload(self, memory: torch.Tensor) -> memoryview:
        return memoryview(memory.numpy())[self.margin :]

    def tensors(self, memory: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the real tensors by name; those that start off a boundary, or are small, copied."""
        if not self.entries:
            return
        buffer, address = memory.numpy(), memory.data_ptr()
        shift = self.margin - self.entries[0].begin
        for entry in self.entries:
            spec, start = entry.spec, shift + entry.begin
            if spec.name.startswith(FILLER):
                continue
            if not spec.nbytes:
                yield spec.name, torch.empty(spec.shape, dtype=spec.dtype)
            elif spec.nbytes < ALIGNMENT or (address + start) % ALIGNMENT:
                raw = torch.frombuffer(buffer, dtype=torch.uint8, count=spec.nbytes, offset=start)
                yield spec.name, raw.clone().view(spec.dtype).reshape(spec.shape)
            else:
                count = spec.nbytes // spec.dtype.itemsize
                flat = torch.frombuffer(buffer, dtype=spec.dtype, count=count, offset=start)
                yield spec.name, flat.reshape(spec.shape)


def _blocks(file: _File, layout: FileLayout, size: int) -> Iterator[_Block]:
    """Yield a file's tensors in blocks of at least `size` bytes, one at least."""
    entries, taken, start = layout.entries, 0, layout.header_bytes
    while True:
        stop = taken
        while stop < len(entries) and (
            stop == taken or entries[stop - 1].end - entries[taken].begin < size
        ):
            stop += 1
        part = entries[taken:stop]
        margin = (start + part[0].begin) % ALIGNMENT if part else 0
        yield _Block(file, part, margin, start, taken == 0, stop == len(entries))
        if stop == len(entries):
            return
        taken = stop


def fresh_memory(nbytes: int) -> torch.Tensor:
    """Return bytes that nothing else holds, aligned to 64 as all of torch's are.

    On pages as the system gives them: asking for huge ones halved the time on some machines and,
    on a virtual machine that got its own memory piece by piece, made it three times as long.
    """
    return torch.empty(nbytes, dtype=torch.uint8)


def digest_of(data: bytes) -> str:
    """Return the digest of a small file's bytes."""
    return xxhash.xxh3_128(data).hexdigest()


def unique_pairs(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object's pairs as a dict, for ``json.loads``; a repeated key is an error."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("it names a key twice")
    return values


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes, on the CPU and in row order; a view where they lie so already."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _layout(name: str, specs: list[Spec]) -> FileLayout:
    layout = FileLayout(name, tuple(_placed(specs)), 0)
    return FileLayout(name, layout.entries, len(_header_text(layout)))


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


def _header_text(layout: FileLayout) -> bytes:
    """Return length and header, padded so that the payload starts on a boundary."""
    header: dict = {"__metadata__": {"format": "pt"}}
    for entry in layout.entries:
        header[entry.spec.name] = {
            "dtype": _DTYPE_NAMES[entry.spec.dtype],
            "shape": list(entry.spec.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


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
    yield _header_text(layout)
    for entry in layout.entries:
        if entry.spec.name.startswith(FILLER):
            yield bytes(entry.spec.nbytes)
            continue
        view = raw_bytes(waiting.take(entry.spec))
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]


def _header(path: Path, text: bytes) -> dict:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is no JSON that can be read: {error}") from error
    if not isinstance(header, dict):
        raise _broken(path, f"its header is a JSON {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _broken(path, "its '__metadata__' is no object")
    return header


def _entry(path: Path, name: str, said: object) -> Entry:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{name!r} isn't described by dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _broken(path, f"{name!r} has dtype {dtype!r}; known: {', '.join(sorted(_DTYPES))}")
    if not _are_counts(shape):
        raise _broken(path, f"{name!r} has a shape that isn't a list of whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _broken(path, f"{name!r} has data_offsets that aren't two whole numbers")
    count = 1
    for size in shape:  # Python's integers don't overflow, torch's do
        count *= size
    expected = count * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise _broken(
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


def _broken(path: Path, why: str) -> BrokenModelError:
    return BrokenModelError(f"{path} can't be read as safetensors: {why}")
