"""What files hold, as digests; a large one isn't read again while it stays as it was."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import xxhash

from ..errors import BrokenModelError, Cancelled, QuantolabError
from .json_objects import read_object
from .whole import write_whole

Stamp = tuple[int, ...]

_CHUNK = 8 << 20
_LARGE = 4 << 20  # bytes; what is smaller is read each time
_REMEMBERED = 2000  # files


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file does: size, times, its number on the disk.

    Raises
    ------
    BrokenModelError
        If it isn't there.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise BrokenModelError(f"{path} can't be read: {error.strerror or error}") from error
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def file_digest(
    path: Path,
    tell: Callable[[int], None] = lambda count: None,
    cancel: threading.Event | None = None,
) -> str:
    """Return the xxh3_128 digest of a file's content.

    That of a large file is remembered in the user's cache until the file changes.

    Parameters
    ----------
    path : Path
        The file.
    tell : callable
        Called with each number of bytes that needn't be waited for any longer.
    cancel : threading.Event, optional
        Set it to end the work.

    Raises
    ------
    BrokenModelError
        If it can't be read.
    Cancelled
        If `cancel` was set.
    """
    stamp = stamp_of(path)
    key = os.path.realpath(path)
    if stamp[0] >= _LARGE:
        known = _remembered().get(key)
        if isinstance(known, list) and known[:-1] == list(stamp) and isinstance(known[-1], str):
            tell(stamp[0])
            return known[-1]
    digest = _read(path, tell, cancel)
    if stamp[0] >= _LARGE and stamp_of(path) == stamp:
        _remember(key, [*stamp, digest])
    return digest


def _read(path: Path, tell: Callable[[int], None], cancel: threading.Event | None) -> str:
    hasher, view = xxhash.xxh3_128(), memoryview(bytearray(_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view):
                if cancel is not None and cancel.is_set():
                    raise Cancelled("cancelled")
                hasher.update(view[:count])
                tell(count)
    except OSError as error:
        raise BrokenModelError(f"{path} can't be read: {error.strerror or error}") from error
    return hasher.hexdigest()


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "quantolab" / "digests.json"


def _remembered() -> dict[str, object]:
    try:
        return read_object(_cache_file())
    except QuantolabError:
        return {}  # none yet, or spoilt: then files are read


def _remember(key: str, entry: list[object]) -> None:
    entries = {**_remembered(), key: entry}
    while len(entries) > _REMEMBERED:
        entries.pop(next(iter(entries)))
    path = _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(entries))
    except (OSError, QuantolabError):
        pass  # a home that can't be written to costs time only
