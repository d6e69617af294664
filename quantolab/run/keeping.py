"""What becomes of a run's folder afterwards: another name, or the trash. Nothing is ever deleted.

A run folder may be a stranger's: links are refused, never followed.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from ..arguments import shown
from ..errors import ArgumentError, ModelNotFoundError, OutputError
from .journal import check_no_links, is_begun, is_held

TRASH = ".quantolab-trash"
"""The folder beside runs that they are moved to; one that isn't looked into for runs."""

_LONGEST = 200  # bytes of a name; file systems have room for 255


def rename_run(folder: str | os.PathLike[str], name: str) -> Path:
    """Give a run's folder another name, in the same place, and return it.

    Parameters
    ----------
    folder : str or pathlib.Path
        The run's folder.
    name : str
        Its new name: no path, and not that of anything that is there.

    Raises
    ------
    ModelNotFoundError
        If the folder holds no run.
    ArgumentError
        If the name can't be one, is taken, or a run is being written there.
    OutputError
        If the system doesn't let us.
    """
    place = _run_folder(folder)
    name = name.strip()
    plain = name and not name.startswith(".") and name.isprintable() and Path(name).name == name
    if not plain or "\\" in name or len(os.fsencode(name)) > _LONGEST:
        raise ArgumentError(
            f"a run can't be called {shown(name)}: a name is needed, without slashes and not "
            "beginning with a dot"
        )
    target = place.with_name(name)
    if os.path.lexists(target):
        raise ArgumentError(f"there is a {name!r} beside {str(place)!r} already")
    return _moved(place, target)


def discard_run(folder: str | os.PathLike[str]) -> Path:
    """Move a run's folder to the trash beside it, and return where it is now.

    Parameters
    ----------
    folder : str or pathlib.Path
        The run's folder. The trash is `TRASH` in the folder around it; `restore_run` brings the
        run back.

    Raises
    ------
    ModelNotFoundError
        If the folder holds no run.
    ArgumentError
        If a run is being written there.
    OutputError
        If the system doesn't let us.
    """
    place = _run_folder(folder)
    trash = place.parent / TRASH
    try:
        trash.mkdir(exist_ok=True)
    except OSError as error:
        raise _refused(place, error) from error
    if trash.is_symlink() or not trash.is_dir():
        raise OutputError(f"{trash} is a link; runs aren't moved to where it leads")
    target = trash / f"{datetime.now():%Y%m%d-%H%M%S-%f}" / place.name
    try:
        target.parent.mkdir()
    except OSError as error:
        raise _refused(place, error) from error
    return _moved(place, target)


def restore_run(folder: Path) -> Path:
    """Bring back what `discard_run` moved to the trash, and return where it is now.

    Raises
    ------
    ModelNotFoundError
        If it isn't there any more.
    ArgumentError
        If its old place is taken.
    OutputError
        If the system doesn't let us.
    """
    place = _run_folder(folder)
    target = place.parent.parent.parent / place.name
    if place.parent.parent.name != TRASH:
        raise ArgumentError(f"{str(folder)!r} isn't in the trash")
    if os.path.lexists(target):
        raise ArgumentError(f"there is another {str(target)!r} by now")
    moved = _moved(place, target)
    try:
        place.parent.rmdir()
        place.parent.parent.rmdir()
    except OSError:
        pass  # others are in it
    return moved


def _run_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a run's folder with no link in it, that nobody is at work in."""
    given = Path(folder).expanduser().absolute()
    if given.is_symlink():
        raise OutputError(f"{given} is a link; what it leads to isn't moved")
    if not given.is_dir() or not is_begun(given):
        raise ModelNotFoundError(f"{str(folder)!r} holds no run")
    place = given.resolve()
    if place == Path.cwd().resolve() or place in Path.cwd().resolve().parents:
        raise ArgumentError(f"{str(place)!r} is the current folder, or around it: it stays")
    check_no_links(place)
    if is_held(place):
        raise ArgumentError(f"a run is being written to {str(place)!r} right now")
    return place


def _moved(place: Path, target: Path) -> Path:
    try:
        return place.rename(target)
    except OSError as error:
        raise _refused(place, error) from error


def _refused(place: Path, error: OSError) -> OutputError:
    return OutputError(f"{str(place)!r} can't be moved: {error.strerror or error}")
