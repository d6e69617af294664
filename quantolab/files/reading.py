"""Tensors come out of safetensors files while other threads read ahead, digested on the way."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path

import torch
import xxhash

from ..errors import BrokenModelError
from .headers import broken
from .layout import ALIGNMENT, FILLER, Entry, FileLayout
from .writing import DIGEST

_BLOCK = 1 << 26  # bytes of neighbouring tensors that are read at a time, into one piece of memory

_SMALL_BLOCK = 1 << 23  # the same where that memory is needed for a moment only

_AHEAD = 2  # blocks that are read before they are asked for, each by a thread of its own


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
        self._coming: deque[tuple[_Block, torch.Tensor, Future[None]]] = deque()
        self._start(_AHEAD)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *error: object) -> None:
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
        self._lock = threading.Lock()
        self._opened: FileIO | None = None

    def read(self, view: memoryview, start: int) -> None:
        """Fill a view with the file's bytes from `start` on."""
        try:
            with self._lock:
                if self._opened is None:
                    self._opened = self.path.open("rb", buffering=0)
                file = self._opened
            position = 0
            while position < len(view):
                count = self._read_at(file, view[position:], start + position)
                if not count:
                    raise broken(self.path, "it ended while it was read")
                position += count
        except OSError as error:
            raise broken(self.path, str(error)) from error

    def _read_at(self, file: FileIO, view: memoryview, start: int) -> int | None:
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [view], start)
        with self._lock:  # Windows: a file has one position only
            file.seek(start)
            return file.readinto(view)

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
