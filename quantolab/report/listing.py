"""The runs under a folder: what was compared, when, where, and how it ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import public
from ..errors import ModelNotFoundError, QuantolabError
from ..records import Comparison, Trial
from ..run import journal
from ..text_tables import text_columns
from ..units import ABSENT, format_list, format_seconds
from .tables import plain_rows

if TYPE_CHECKING:
    import pandas as pd

LISTED = (
    "run", "model", "recipes", "prompts", "seeds", "steps", "size", "device_name", "when",
    "state", "ok", "failed", "wall_seconds", "reason",
)  # fmt: skip
"""The columns of `runs`."""

FINISHED, UNFINISHED, RUNNING, UNREADABLE = "finished", "unfinished", "running", "unreadable"
_DEEPEST = 6  # folders below the one that is named; runs lie one or two below where people work
HEADERS = ("run", "model", "recipes", "machine", "when (UTC)", "state", "took")
"""Headings of the cells of `readable_row`."""


@public
def runs(folder: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Return one row a run under a folder, the latest first.

    A run is a folder with a ``run.json``, as ``compare --out`` and `save_comparison` write it.
    Links aren't followed, and folders whose names begin with a dot aren't looked into. One that
    can't be read has a row too, with the reason.

    Parameters
    ----------
    folder : str or pathlib.Path, optional
        Where to look, itself included; by default the current folder.

    Returns
    -------
    pandas.DataFrame
        ``run`` is the folder, as `load_comparison` takes it. ``when`` is when its record was last
        written, in UTC. ``state`` is ``finished``, ``unfinished`` (``--resume`` goes on with it),
        ``running`` or ``unreadable``; ``ok`` and ``failed`` count trials (unsupported ones count
        as failed), ``wall_seconds`` is what the whole run took.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder.

    Examples
    --------
    >>> runs("quantolab-runs")[["run", "model", "state"]]       # doctest: +SKIP
    """
    import pandas as pd

    place = Path(folder if folder is not None else ".").expanduser()
    if not place.is_dir():
        raise ModelNotFoundError(f"there is no folder {str(place)!r} to look for runs in")
    rows = sorted(map(_row, _run_folders(place)), key=lambda row: row["when"], reverse=True)
    table = pd.DataFrame(rows, columns=list(LISTED))
    whole = dict.fromkeys(("prompts", "seeds", "steps", "ok", "failed"), "Int64")
    return table.astype({**whole, "wall_seconds": float, "when": "datetime64[us, UTC]"})


def runs_text(table: pd.DataFrame) -> str:
    """Return what `runs` gave for the terminal."""
    if not len(table):
        return "No runs here: `quantolab compare --out FOLDER` makes one.\n"
    rows = plain_rows(table)
    lines = text_columns([HEADERS, *map(readable_row, rows)], "llllllr", rule=True)
    lines += [
        f"{row['run']} can't be read: {row['reason']}" for row in rows if row["state"] == UNREADABLE
    ]
    return "\n".join(lines) + "\n"


def readable_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what people read of a run: a text for each of `HEADERS`.

    Parameters
    ----------
    row : dict
        Row of `runs`, of `plain_rows`.
    """
    failed = "" if not row["failed"] else f", {row['failed']} failed"
    return (
        row["run"],
        row["model"] or ABSENT,
        row["recipes"] or ABSENT,
        row["device_name"] or ABSENT,
        row["when"].strftime("%Y-%m-%d %H:%M"),
        row["state"] + failed,
        format_seconds(row["wall_seconds"]),
    )


def _run_folders(place: Path) -> Iterator[Path]:
    for here, below, files in os.walk(place):
        deep = len(Path(here).relative_to(place).parts)
        if journal.RUN_FILE in files and not Path(here, journal.RUN_FILE).is_symlink():
            below.clear()  # a run holds no other
            yield Path(here)
        elif deep >= _DEEPEST:
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]


def _row(folder: Path) -> dict[str, Any]:
    written = (folder / journal.RUN_FILE).stat().st_mtime
    row: dict[str, Any] = dict.fromkeys(LISTED)
    row |= {"run": str(folder), "when": datetime.fromtimestamp(written, UTC)}
    try:
        comparison, asked = journal.read_run(folder), journal.read_asked(folder)
        busy = journal.is_held(folder)
    except QuantolabError as error:
        return row | {"state": UNREADABLE, "reason": str(error)}
    return row | _contents(comparison, asked) | {"state": _state(comparison, asked, busy)}


def _contents(comparison: Comparison, asked: tuple[Trial, ...]) -> dict[str, Any]:
    workload, trials = comparison.workload, comparison.trials
    machines = [t.conditions.device_name for t in trials if t.conditions is not None]
    width, height = workload.size
    return {
        "model": workload.model,
        "recipes": ", ".join(trial.label for trial in asked),
        "prompts": len(workload.prompts),
        "seeds": len(workload.seeds),
        "steps": workload.steps,
        "size": f"{width}x{height}",
        "device_name": format_list(list(dict.fromkeys(machines))) or None,
        "ok": sum(trial.ok for trial in trials),
        "failed": sum(not trial.ok for trial in trials),
        "wall_seconds": comparison.wall_seconds,
    }


def _state(comparison: Comparison, asked: tuple[Trial, ...], busy: bool) -> str:
    if busy:
        return RUNNING
    return FINISHED if len(comparison.trials) == len(asked) else UNFINISHED
