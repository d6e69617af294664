"""Records that show themselves at the end of a notebook's cell: short, escaped, legible everywhere.

Light: what a view needs is imported when something is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import units
from ..records import Comparison, Trial, show_by
from .markup import Raw, escaped, note, pairs, table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Trial"]


def _table(comparison: Comparison) -> pd.DataFrame:
    from .short_frame import ShortFrame
    from .tables import results_table

    return ShortFrame(results_table(comparison))


def _grid(comparison: Comparison) -> Figure:
    from .figures import image_grid

    return image_grid(comparison)


_MOST = 100  # rows


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison's readable table, with the reasons of what failed and the notes.

    Of very many trials the first: a notebook that holds it stays quick to open.
    """
    from .tables import ALIGN, readable

    frame = _table(comparison)
    text = readable(frame.head(_MOST))
    missing = len(frame) - len(text.rows)
    more = (f"{units.format_count(missing, 'recipe')} more: results_table has all.",) * bool(
        missing
    )
    rows = [
        row if not reason else (*row[:-1], _why(row[-1], reason))
        for row, reason in zip(text.rows, text.reasons, strict=True)
    ]
    workload = comparison.workload
    width, height = workload.size
    said = (
        f"{workload.model}, {units.format_count(len(workload.pairs), 'picture')} a recipe, "
        f"{units.format_count(workload.steps, 'step')}, {width}x{height}"
    )
    below = "".join(map(note, (*more, *text.notes)))
    return table(text.headers, rows, align=ALIGN, caption=said, css="ql-shown") + below


def trial_html(trial: Trial) -> str:
    """Return what is known of a trial, a line each; what isn't has no line."""
    known = [
        ("recipe", trial.label),
        ("status", trial.status),
        ("reason", trial.reason),
        ("weights", _bytes(trial.weight_bytes)),
        ("predicted", _bytes(trial.predicted_weight_bytes)),
        ("saved", _bytes(trial.file_bytes)),
        ("peak", _bytes(trial.peak_bytes)),
        ("loading", _seconds(trial.load_seconds)),
        ("compiling", _seconds(trial.compile_seconds)),
        *(("note", text) for text in trial.notes),
    ]
    return pairs((name, value) for name, value in known if value is not None)


def _why(status: str, reason: str) -> Raw:
    return Raw(f"{escaped(status)}: {escaped(reason)}")


def _bytes(count: int | None) -> str | None:
    return None if count is None else units.format_bytes(count)


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else units.format_seconds(seconds)


show_by(table=_table, grid=_grid, comparison_html=comparison_html, trial_html=trial_html)
