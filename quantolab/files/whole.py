"""Files and folders that appear whole or not at all: the one writer of the package.

What is written goes under a name that nobody can have prepared, beside its place, and takes its
place in one step. What a killed process left is cleared away by the next writer there.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ..errors import OutputError, QuantolabError

_AT_FDCWD, _EXCHANGE = -100, 2
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would change line ends
_MARK = ".saving-"


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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = _fresh(folder)
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


@contextmanager
def scratch_folder(what: str) -> Iterator[Path]:
    """Give an empty folder that goes with the block; those of killed processes go first.

    Parameters
    ----------
    what : str
        A word for its name.
    """
    for left in Path(tempfile.gettempdir()).glob(f"quantolab-*-{_host()}-*-*"):
        _clear_scratch(left)
    prefix = f"quantolab-{what}-{_host()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """Give an empty folder inside another one, to move whole things from; it goes with the block.

    What a killed process left of its own is cleared away by the next.

    Raises
    ------
    OutputError
        If the system doesn't let us write there, or the disk is full.
    """
    place = _fresh(folder / "work")
    try:
        place.mkdir()
        yield place
    except OSError as error:
        if isinstance(error, QuantolabError):
            raise
        raise OutputError(f"{folder} can't be written: {_said(error)}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _clear_scratch(left: Path) -> None:
    number = left.name.rpartition(f"-{_host()}-")[2].partition("-")[0]
    if not number.isdigit() or _is_alive(int(number)) or left.is_symlink() or not left.is_dir():
        return
    if hasattr(os, "getuid") and left.stat().st_uid == os.getuid():
        shutil.rmtree(left, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    A link that stands in its place is replaced, never followed.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        fresh = _fresh(path)
        # New and no link, so that nothing outside can be written through it.
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path} can't be written: {_said(error)}") from error


def usable_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder that exists and can be written, made if need be.

    Raises
    ------
    OutputError
        If it can't be.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"results can't be written to {str(path)!r}: {_said(error)}") from error
    return path


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left in a folder while they wrote."""
    for left in folder.glob(".*" + _MARK + "*"):
        _clear(left)


def _fresh(place: Path) -> Path:
    """Return a name for what will take a place, after clearing away what others left of it."""
    start = f".{place.name[:100]}{_MARK}{_host()}-"
    for left in place.parent.glob(glob.escape(start) + "*"):
        _clear(left)
    return place.parent / f"{start}{os.getpid()}-{secrets.token_hex(8)}"


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
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0


@cache
def _host() -> str:
    import socket  # not where only --help is asked for

    return socket.gethostname().replace("-", "_")


def _clear(left: Path) -> None:
    """Remove one file or folder if the process of this machine that began it has ended."""
    host, _, rest = left.name.rpartition(_MARK)[2].partition("-")
    number = rest.partition("-")[0]
    if host != _host() or not number.isdigit() or _is_alive(int(number)) or rest.endswith("-old"):
        return
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


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
