"""A comparison as files for people: tables and figures, each of them whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import public
from ..files.whole import usable_folder, write_whole
from ..records import Comparison
from ..run import journal
from ..run.merging import joined, read_runs
from .figures import image_grid, plot_tradeoff
from .lettering import png
from .nearer import nearer_sentences
from .tables import markdown_escaped, markdown_table, results_table

if TYPE_CHECKING:
    import pandas as pd


def write_report(comparison: Comparison, folder: str | Path) -> tuple[Path, ...]:
    """Write the tables and figures of a comparison; return the files.

    ``results.csv``, ``results.parquet``, ``results.md``, ``grid.png`` and ``tradeoff.png``.
    Each is written beside its place and moved there when it is complete, so a reader, or a run
    that was killed, never sees half a file.

    Parameters
    ----------
    comparison : Comparison
        What `compare` returned or `load_comparison` read.
    folder : str or pathlib.Path
        Where to; made if it isn't there. Files of an earlier report are replaced.

    Raises
    ------
    OutputError
        If the folder can't be made or written to.
    """
    makers = report_makers(comparison)
    folder = usable_folder(folder)
    paths = tuple(folder / name for name in makers)
    for path, make in zip(paths, makers.values(), strict=True):
        write_whole(path, make())
    return paths


def report_makers(comparison: Comparison) -> dict[str, Callable[[], bytes]]:
    """Return, by file name, functions that make the files of a report."""
    table = results_table(comparison)
    return {
        "results.csv": lambda: table.to_csv(index=False, lineterminator="\n").encode(),
        "results.parquet": lambda: table.to_parquet(index=False),
        "results.md": lambda: _markdown(comparison, table).encode(),
        "grid.png": lambda: png(image_grid(comparison, page=1)),
        "tradeoff.png": lambda: png(plot_tradeoff(table).get_figure(root=True)),
    }


@public
def _markdown(comparison: Comparison, table: pd.DataFrame) -> str:
    sentences = nearer_sentences(comparison)
    return markdown_table(table) + "".join(
        f"- {markdown_escaped(sentence)}\n" for sentence in sentences
    )


@public
def save_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write a comparison so that `load_comparison` reads it back; return the folder.

    Its records go to ``run.json``, its pictures to ``images/``, and the report of
    `write_report` beside them.

    Parameters
    ----------
    comparison : Comparison
        What to keep.
    folder : str or pathlib.Path
        Where to; made if it isn't there.

    Raises
    ------
    OutputError
        If the folder can't be made or written to.

    Examples
    --------
    >>> save_comparison(comparison, "run")                      # doctest: +SKIP
    """
    folder = journal.save(comparison, folder)
    write_report(comparison, folder)
    return folder


@public
def load_comparison(folder: str | Path) -> Comparison:
    """Return the comparison that `save_comparison` or ``compare --out`` wrote.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder with ``run.json``. Neither the model nor torch is needed.

    Examples
    --------
    >>> load_comparison("run").trials                           # doctest: +SKIP
    """
    return journal.read(Path(folder))


@public
def merge(folders: Iterable[str | os.PathLike], out: str | os.PathLike) -> Comparison:
    """Join runs of the same workload that were made apart into one: two machines, or two days.

    Each recipe is there once. What two runs both hold must agree: the same bytes, and the same
    pictures unless other versions or devices made them, which is said. All rows are judged against
    one reference. Rounds of different runs are never compared, so recipes that were timed on
    another kind of device than the reference have no verdict; `device_name` tells each row's.

    Parameters
    ----------
    folders : iterable of str or pathlib.Path
        Folders of two runs or more, as ``compare --out`` wrote them. They stay as they are.
    out : str or pathlib.Path
        A new folder for the whole, which opens everywhere as any other run does.

    Returns
    -------
    Comparison
        Trials in the order of the runs, and their pictures.

    Raises
    ------
    ArgumentError
        If the runs don't fit together, with what differs, or `out` holds a run.
    ModelNotFoundError, BrokenModelError
        If one holds no run, or one that can't be read.
    OutputError
        If `out` can't be written.

    Examples
    --------
    >>> merge(["monday", "tuesday"], "both").table              # doctest: +SKIP
    """
    journal.check_folder(out, resume=False)
    comparison, asked = joined(read_runs([Path(folder) for folder in folders]))
    place = journal.save(comparison, Path(out).expanduser(), asked)
    write_report(comparison, place)
    return journal.read(place)
