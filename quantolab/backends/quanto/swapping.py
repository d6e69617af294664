"""A folder that appears whole or not at all, and takes the place of an older one in one step."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import OutputError

_AT_FDCWD, _EXCHANGE = -100, 2


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it becomes `folder`.

    Until then an older folder of that name stays as it is, and it stays so if the block raises
    or the process is killed. What a killed process left beside it is cleared away by the next.

    Parameters
    ----------
    folder : Path
        Final place. Whether it may be replaced is the caller's decision.

    Raises
    ------
    OutputError
        If the system doesn't let us write there, or the disk is full.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder: what it points to is replaced
    host = socket.gethostname().replace("-", "_")
    start = f".{folder.name}.saving-{host}-"
    fresh = folder.parent / f"{start}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder.parent, start)
        fresh.mkdir()
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {_said(error)}") from error
    try:
        yield fresh
        _sync(fresh)
        _swap(fresh, folder)
        _sync(folder.parent)
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {_said(error)}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # the older one, or what wasn't finished


def write_text(path: Path, text: str) -> None:
    """Write a text file that is on the disk when this returns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _swap(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    if _exchange(fresh, folder):
        return
    # No exchange in one step here: for an instant neither has the name.
    aside = fresh.with_name(fresh.name + "-old")
    folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    aside.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names in one step; False where the system can't."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0


def _clear_leftovers(parent: Path, start: str) -> None:
    for left in parent.glob(_escaped(start) + "*"):
        number = left.name.removeprefix(start).partition("-")[0]
        if number.isdigit() and not _is_alive(int(number)) and not left.name.endswith("-old"):
            shutil.rmtree(left, ignore_errors=True)


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # there, signal 0 isn't a question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Make a folder's own entries reach the disk, where a folder can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse
    finally:
        os.close(handle)


def _said(error: OSError) -> str:
    return error.strerror or str(error)
