"""The results table as a widget that sorts by a click or a key on a heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as W
import traitlets

from ..errors import one_of
from ..report.beside import RUN, readable_runs
from ..report.markup import Raw, escaped, note, table
from ..report.tables import ALIGN, held_bytes, plain_rows, readable
from ..units import ABSENT
from .assets import asset

if TYPE_CHECKING:
    import pandas

_SORTED_BY = (
    "recipe", "weight_bytes", "memory", "latency_seconds", "speedup", "psnr_db", "floor_multiple",
    "ssim", "status",
)  # fmt: skip
"""The column that each heading of the readable table is sorted by, in the order of HEADERS."""


@dataclass(frozen=True)
class TableContent:
    """Every word of the table, and what its rows are sorted by."""

    headers: tuple[str, ...]
    numbers: tuple[bool, ...]
    """Whether a column holds figures, which stand to the right."""
    rows: tuple[tuple[str, ...], ...]
    keys: tuple[tuple[Any, ...], ...]
    """Under each cell the number or text to sort by; None is absent and stands last."""
    reasons: tuple[str | None, ...]
    """Why a row has no figures; None for rows that have."""
    notes: tuple[str, ...]

    def plain(self) -> dict:
        """Return plain values for the browser."""
        return {
            "headers": list(self.headers),
            "numbers": list(self.numbers),
            "rows": [list(row) for row in self.rows],
            "keys": [list(row) for row in self.keys],
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }


NOTHING = TableContent((), (), (), (), (), ())


def readable_content(frame: pandas.DataFrame) -> TableContent:
    """Return the few columns that people read, in the words of `report.tables.readable`.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `results_table`, or that of several runs side by side.
    """
    joined = RUN in frame.columns
    text = readable_runs(frame) if joined else readable(frame)
    sorted_by = (RUN, *_SORTED_BY) if joined else _SORTED_BY
    return TableContent(
        headers=text.headers,
        numbers=tuple(letter == "r" for letter in ("l" * joined + ALIGN)),
        rows=text.rows,
        keys=tuple(
            tuple(_key(record.get(name)) for name in sorted_by)
            for record in ({**r, "memory": held_bytes(r)} for r in plain_rows(frame))
        ),
        reasons=text.reasons,
        notes=text.notes,
    )


def full_content(frame: pandas.DataFrame) -> TableContent:
    """Return every column as the CSV file has it, raw."""
    records = plain_rows(frame)
    return TableContent(
        headers=tuple(frame.columns),
        numbers=tuple(frame[name].dtype.kind in "iuf" for name in frame.columns),
        rows=tuple(
            tuple(ABSENT if value is None else str(value) for value in record.values())
            for record in records
        ),
        keys=tuple(tuple(map(_key, record.values())) for record in records),
        reasons=(None,) * len(records),
        notes=("Bytes and seconds as they are in the files.",),
    )


def _key(value: Any) -> Any:
    """Return what a cell is sorted by: JSON has no infinity, which PSNR of equal pictures is."""
    if isinstance(value, float) and value == float("inf"):
        return 1e308
    if isinstance(value, bool) or value is None or isinstance(value, (int, float, str)):
        return value
    return str(value)


def order(keys: Sequence[Any], descending: bool) -> list[int]:
    """Return positions in sorted order, the absent last either way; equals keep their places."""
    there = [i for i, key in enumerate(keys) if key is not None]
    absent = [i for i, key in enumerate(keys) if key is None]
    return sorted(there, key=lambda i: keys[i], reverse=descending) + absent


class _SortedTable(anywidget.AnyWidget):
    """The table itself; see tables.js."""

    _esm = asset("shared.js", "tables.js")
    _css = asset("tables.css")

    content = traitlets.Dict(NOTHING.plain()).tag(sync=True)
    order = traitlets.List(traitlets.Int()).tag(sync=True)
    sorted_by = traitlets.Unicode("").tag(sync=True)
    """Heading; empty for the order of the run."""
    descending = traitlets.Bool(False).tag(sync=True)
    marked = traitlets.Int(-1).tag(sync=True)
    """Place of the row that is advised, in the order of the run; below 0 none is."""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("ql-table")
        self.observe(lambda _: self._sort(), ["content", "sorted_by", "descending"])

    def _sort(self) -> None:
        headers = self.content["headers"]
        if self.sorted_by in headers:
            column = headers.index(self.sorted_by)
            keys = [row[column] for row in self.content["keys"]]
            self.order = order(keys, self.descending)
        else:
            self.order = list(range(len(self.content["rows"])))


class ResultsTable(W.VBox):
    """A results table; a click, Enter or Space on a heading sorts by it.

    Parameters
    ----------
    frame : pandas.DataFrame, optional
        From `results_table`.

    Examples
    --------
    >>> shown = ResultsTable(results_table(comparison))         # doctest: +SKIP
    >>> shown.sort("PSNR", descending=True)                     # doctest: +SKIP
    """

    def __init__(self, frame: pandas.DataFrame | None = None) -> None:
        self._frame: pandas.DataFrame | None = None
        self._marked: str | None = None
        self.all_columns = W.Checkbox(
            description="all columns", indent=False, layout={"width": "auto"}
        )
        self.sheet = _SortedTable()
        super().__init__((self.all_columns, self.sheet))
        self.all_columns.observe(lambda _: self._show(), "value")
        if frame is not None:
            self.update(frame)

    def update(self, frame: pandas.DataFrame) -> None:
        """Show another table; the order stays what the user chose."""
        self._frame = frame
        self._show()
        self.mark(self._marked)

    def sort(self, heading: str = "", *, descending: bool = False) -> None:
        """Sort by a heading; without one, in the order of the run.

        Raises
        ------
        ArgumentError
            If there is no such heading.
        """
        if heading:
            one_of("heading", heading, self.sheet.content["headers"])
        self.sheet.sorted_by, self.sheet.descending = heading, descending

    def mark(self, recipe: str | None) -> None:
        """Mark the row of a recipe, by its label; None marks none."""
        self._marked = recipe
        labels = [] if self._frame is None else self._frame.recipe.tolist()
        self.sheet.marked = labels.index(recipe) if recipe in labels else -1

    @property
    def recipes(self) -> tuple[str, ...]:
        """Labels of the rows as they stand now, top to bottom."""
        rows = self.sheet.content["rows"]
        return tuple(rows[i][0] for i in self.sheet.order)

    def _show(self) -> None:
        if self._frame is None or self._frame.empty:
            self.sheet.content = NOTHING.plain()
            return
        make = full_content if self.all_columns.value else readable_content
        self.sheet.content = make(self._frame).plain()


_MOST_STATIC = 100  # rows: a notebook that holds them stays quick to open


def table_html(frame: pandas.DataFrame) -> str:
    """Return a results table as HTML for where no kernel is alive."""
    content = readable_content(frame.head(_MOST_STATIC))
    rows = []
    for cells, reason in zip(content.rows, content.reasons, strict=True):
        rows.append(
            cells if reason is None else (*cells[:-1], Raw(f"{cells[-1]}: {escaped(reason)}"))
        )
    made = table(content.headers, rows, align=ALIGN, css="ql-static-table")
    missing = len(frame) - len(rows)
    more = (f"{missing} more recipes are left out here.",) if missing else ()
    return made + "".join(map(note, (*more, *content.notes)))
