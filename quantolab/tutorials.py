"""`quantolab lab`: the tutorials in a folder of the user's, and JupyterLab opened on them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .errors import ModelNotFoundError, OutputError, UnsupportedError
from .files.whole import write_whole

FOLDER = "quantolab-notebooks"
"""Where the tutorials go if no other folder is named."""

RECORD = ".quantolab-notebooks.json"
"""Digests of what was copied: a file that still has its digest wasn't changed by the user."""

_SUFFIXES = (".ipynb", ".csv", ".md", ".png")


@dataclass(frozen=True)
class Copied:
    """What became of each file, as paths relative to the folder."""

    folder: Path
    new: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    """Replaced by a newer version; the user hadn't changed them."""
    kept: tuple[str, ...] = ()
    """Changed by the user, so left alone."""
    beside: tuple[str, ...] = ()
    """Newer versions of those, under names of their own."""
    notebooks: tuple[str, ...] = ()
    """All tutorials, in reading order, whatever became of them."""


def notebooks_folder() -> Path:
    """Return the folder of the tutorials: inside an installed package, or in a checkout.

    Raises
    ------
    ModelNotFoundError
        If this installation has none.
    """
    here = Path(__file__).parent
    for folder in (here / "notebooks", here.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise ModelNotFoundError(f"this installation of quantolab has no notebooks (in {here})")


def copy_notebooks(folder: str | os.PathLike = FOLDER, source: Path | None = None) -> Copied:
    """Copy the tutorials into a folder, never over a file that the user changed.

    A file that is as it was copied is brought up to date. One that was changed stays, and a
    newer version goes beside it: ``name.quantolab-0.1.0.ipynb``. Nothing is ever deleted.

    Parameters
    ----------
    folder : path
        Where to; made if it isn't there.
    source : Path, optional
        Where from; by default the tutorials of this installation.

    Raises
    ------
    ModelNotFoundError
        If there are no tutorials.
    OutputError
        If the folder can't be written.
    """
    source = notebooks_folder() if source is None else source
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _copy_all(source, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"the notebooks can't be copied to {str(folder)!r}: {reason}") from error


def _copy_all(source: Path, folder: Path) -> Copied:
    record = _read_record(folder)
    done: dict[str, list[str]] = {"new": [], "updated": [], "kept": [], "beside": []}
    notebooks = []
    for path in _shipped(source):
        name = path.relative_to(source).as_posix()
        if path.suffix == ".ipynb":
            notebooks.append(name)
        content = path.read_bytes()
        _copy(folder, name, content, record, done)
        _put(folder / RECORD, json.dumps(record, indent=1, sort_keys=True).encode())
    found = {what: tuple(names) for what, names in done.items()}
    return Copied(folder, **found, notebooks=tuple(notebooks))


def _copy(folder: Path, name: str, content: bytes, record: dict, done: dict) -> None:
    target, digest = folder / name, _digest(content)
    if not target.exists():
        _put(target, content)
        done["new"].append(name)
    else:
        found = _digest(target.read_bytes())
        if found not in (digest, record.get(name)):
            done["kept"].append(name)
            if record.get(name) != digest:  # not the version that the user's own came from
                _put_beside(folder, name, content, record, done)
            return
        if found != digest:
            _put(target, content)
            done["updated"].append(name)
    record[name] = digest


def _put_beside(folder: Path, name: str, content: bytes, record: dict, done: dict) -> None:
    """Write a newer version under the first free name, unless it lies there already."""
    path, digest = Path(name), _digest(content)
    for number in range(1, 1000):
        mark = f".quantolab-{__version__}" + (f"-{number}" if number > 1 else "")
        other = path.with_name(path.stem + mark + path.suffix).as_posix()
        target = folder / other
        if record.get(other) == digest:  # it was given before, whatever became of it
            return
        if not target.exists():
            _put(target, content)
            record[other] = digest
            done["beside"].append(other)
            return


def _shipped(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(source).parts)
        if path.is_file() and path.suffix in _SUFFIXES and not hidden:
            yield path


def _read_record(folder: Path) -> dict[str, str]:
    """Return the digests; none if there is no record or somebody broke it: then all is kept."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- JupyterLab -----------------------------------------------------------------------------


def jupyter_command(
    folder: Path, *, browser: bool = True, port: int | None = None, first: str | None = None
) -> list[str]:
    """Return the command that serves a folder on this machine alone, with Jupyter's own token.

    Parameters
    ----------
    folder : Path
        What is served.
    browser : bool
        Whether to open a browser.
    port : int, optional
        That port or none; by default Jupyter's own, or the next free one.
    first : str, optional
        Notebook to show first.

    Raises
    ------
    UnsupportedError
        If JupyterLab isn't installed.
    """
    if find_spec("jupyterlab") is None:
        raise UnsupportedError("JupyterLab is not installed here: pip install jupyterlab")
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1"]
    command.append(f"--ServerApp.root_dir={folder.resolve()}")
    if not browser:
        command.append("--no-browser")
    if port is not None:
        command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    if first is not None:
        command.append(f"--LabApp.default_url=/lab/tree/{first}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container one is root; only this machine is served
    return command


def serve(command: list[str]) -> int:
    """Become the command: it gets Ctrl-C and the terminal. Returns only on Windows."""
    sys.stdout.flush()
    if sys.platform != "win32":
        os.execv(command[0], command)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # the server got it as well and has ended
        return 0
