"""Interactive panels for Jupyter: state and wiring over the public library.

Whatever a panel does, it can show the library call that does the same.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_ROOMS = {
    "explorer": "exploring",
    "skip_explorer": "skipping",
    "single_file_loader": "single_files",
    "save_panel": "saving",
    "compile_explorer": "compiling",
}

__all__ = list(_ROOMS)

if TYPE_CHECKING:  # what editors and type checkers see
    from .compiling import compile_explorer
    from .exploring import explorer
    from .saving import save_panel
    from .single_files import single_file_loader
    from .skipping import skip_explorer


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOMS))
