"""JSON files are read in one way: ordinary files, within limits, and nothing in them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BrokenModelError

_LIMIT = 200_000_000  # bytes; an index of a large model has a few million


def read_object(path: Path, home: Path | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Parameters
    ----------
    path : Path
        The file.
    home : Path, optional
        A folder that no link may lead out of (see `check_inside`); by default links to ordinary
        files are followed, wherever those lie, as in the Hub's cache.

    Raises
    ------
    BrokenModelError
        If it isn't an ordinary file, isn't such an object, names a key twice, is nested beyond
        all measure, is absurdly long, or lies outside `home`.
    """
    if home is not None:
        check_inside(home, path)
    elif path.exists() and not path.is_file():
        raise BrokenModelError(f"{path} isn't an ordinary file")
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenModelError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise BrokenModelError(f"{path} holds a JSON {type(values).__name__}, not an object")
    return values


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dict, for ``json.loads``; a repeated key is an error."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("it names a key twice")
    return values


def check_inside(folder: Path, path: Path) -> None:
    """Make sure that a file is an ordinary one, and that no link leads out of its folder.

    The Hub's cache is the exception: its folders are links to files in a ``blobs`` folder
    beside ``snapshots``.

    Raises
    ------
    BrokenModelError
        If it isn't so.
    """
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise BrokenModelError(f"{path} can't be read: {error}") from error
    allowed = [home]
    parts = home.parts
    if "snapshots" in parts:
        allowed.append(Path(*parts[: parts.index("snapshots")], "blobs"))
    if not any(real.is_relative_to(place) for place in allowed):
        raise BrokenModelError(f"{path} is a link that leads out of its folder, to {real}")
    if not real.is_file():
        state = "isn't an ordinary file" if real.exists() else "isn't there"
        raise BrokenModelError(f"{path} {state}")
