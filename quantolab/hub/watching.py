"""Who watches what is fetched, and who may end it: said once around a call, not through all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tqdm.auto import tqdm

from ..telling import has_bars, say_line
from ..units import format_bytes


@dataclass(frozen=True)
class Fetching:
    """How far a download is."""

    what: str
    """What is fetched, as it was asked for."""
    done: int
    """Bytes that are here, those that were in the cache before counted too."""
    total: int
    files: int
    """Files that weren't in the cache."""
    note: str = ""
    """What is waited for, if something is."""

    def __str__(self) -> str:
        far = f"{format_bytes(self.done)} of {format_bytes(self.total)}"
        return f"fetching {self.what}: {self.note or far}"


FetchWatch = Callable[[Fetching], None]

_watch: ContextVar[FetchWatch | None] = ContextVar("watch", default=None)
_cancel: ContextVar[threading.Event | None] = ContextVar("cancel", default=None)


@contextmanager
def watching(
    watch: FetchWatch | None = None, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Have downloads in the block tell how far they are, and end when `cancel` is set.

    Parameters
    ----------
    watch : callable, optional
        Takes each `Fetching`, in the thread that asked; by default a bar on standard error or in
        the notebook.
    cancel : threading.Event, optional
        Set it from anywhere to end a download within a second.
    """
    before = (_watch.set(watch or _watch.get()), _cancel.set(cancel or _cancel.get()))
    try:
        yield
    finally:
        _watch.reset(before[0])
        _cancel.reset(before[1])


def asked_to_end() -> bool:
    """Return whether whoever started this wants it ended."""
    event = _cancel.get()
    return event is not None and event.is_set()


@contextmanager
def watcher() -> Iterator[FetchWatch]:
    """Give the watcher of this call: the one that was named, or a bar that goes with the block."""
    named = _watch.get()
    if named is not None:
        yield named
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()


class _Bar:
    """One bar over all files; where there is no terminal, a line that says what comes."""

    def __init__(self) -> None:
        self._plain = not has_bars()
        self._bar: tqdm | None = None
        self._said: set[str] = set()

    def __call__(self, now: Fetching) -> None:
        if now.note and now.note not in self._said:
            self._said.add(now.note)
            say_line(str(now), self._bar)
        if self._plain:
            if "" not in self._said and now.total > now.done:
                self._said.add("")
                rest = format_bytes(now.total - now.done)
                here = f"; {format_bytes(now.done)} are here already" if now.done else ""
                say_line(f"fetching {now.what}: {rest} in {now.files} files{here}")
            return
        if self._bar is None:
            self._bar = tqdm(
                total=now.total, initial=now.done, unit="B", unit_scale=True, leave=False,
                desc=f"fetching {now.what}",
            )  # fmt: skip
        self._bar.n = now.done
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
