"""Scripts and styles of the widgets, which lie beside them in the package."""

from __future__ import annotations

from importlib.resources import files


def asset(*names: str) -> str:
    """Return package files as one text: nothing is fetched from anywhere."""
    folder = files(__package__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
