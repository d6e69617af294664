"""Models and runs of late, so that a form can offer them: a small file in the user's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import QuantolabError
from ..files.whole import write_whole
from ..models.source import DEMO

_MOST = 20


def recent_models() -> tuple[str, ...]:
    """Return models that were compared, the latest first; folders that are gone are left out."""
    return tuple(
        model
        for model in _read()["models"]
        if Path(model).is_dir() or not Path(model).is_absolute()
    )


def recent_runs() -> tuple[Path, ...]:
    """Return folders of runs, the latest first, as far as they are still there."""
    return tuple(folder for folder in map(Path, _read()["runs"]) if folder.is_dir())


def remember(model: str, run: str | os.PathLike) -> None:
    """Put a model and a run first. Where nothing can be written, nothing is remembered."""
    if model != DEMO and Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    known = _read()
    values = {
        "models": _first(model, known["models"]) if model != DEMO else known["models"],
        "runs": _first(str(Path(run).resolve()), known["runs"]),
    }
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), json.dumps(values, indent=1))
    except (QuantolabError, OSError):
        pass  # a home that can't be written to is no reason to fail


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quantolab" / "recent.json"


def _read() -> dict[str, list[str]]:
    try:
        values = json.loads(_file().read_text(encoding="utf-8"))
        return {key: [str(item) for item in values[key]] for key in ("models", "runs")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"models": [], "runs": []}


def _first(item: str, items: list[str]) -> list[str]:
    return list(dict.fromkeys([item, *items]))[:_MOST]
