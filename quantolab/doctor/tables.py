"""The path matrix as text: for a terminal, and as Markdown for a README."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ..text_tables import markdown_line, text_columns
from ..units import ABSENT, format_seconds
from .constants import DISTRIBUTIONS
from .matrix import totals

if TYPE_CHECKING:
    import pandas

_WIDTH = 100
_LEGEND = (
    "*works*: it ran, the right layers are quantized, and the output is near the unquantized "
    "one or, after a reload, the saved one bit for bit; compiled, it is no further from eager "
    "than compiling alone explains. *misleads*: no error, and not that. *fails*: an error or a "
    "crash, told with its own message. The model is a random FLUX of one block of each kind, 256 "
    "wide; plain Diffusers' converter of original files, which assumes 3072, was told so."
)
_LEGENDS = {
    "quanto": " A plain reload of int8 crashes where its tensors lie off the steps of 16 bytes "
    "that the CPU's kernel reads; in a file of other layers, or on a processor without AVX-512, "
    "it may work.",
    "sdnq": " SDNQ's own lists of layers to keep were off, by its options, on both sides, and so "
    "was its compiling while it is imported.",
}
_WAYS = {"diffusers": "plain Diffusers", "quantolab": "quantolab"}


def markdown_matrix(matrix: pandas.DataFrame) -> str:
    """Return a path matrix as Markdown: a table, the totals, and every failure's reason.

    Rows are the paths and columns the dtypes; a cell says what became of plain Diffusers, then
    of quantolab, with the number of the note below that gives the reason.

    Parameters
    ----------
    matrix : pandas.DataFrame
        From `path_matrix`, or read back from its CSV.
    """
    notes = matrix_notes(matrix)
    numbers = {cell: n for n, note in enumerate(notes, 1) for cell in note["cells"]}
    dtypes = list(dict.fromkeys(matrix["weights"]))
    ways = list(dict.fromkeys(matrix["via"]))
    found = _by_cell(matrix)
    head = " / ".join(_WAYS[way] for way in ways)
    lines = [markdown_line((head, *dtypes)), "|---" * (len(dtypes) + 1) + "|"]
    for path in dict.fromkeys(matrix["path"]):
        cells = [
            " / ".join(_numbered((path, weights, way), found, numbers) for way in ways)
            for weights in dtypes
        ]
        lines.append(markdown_line((path, *cells)))
    lines += ["", text_totals(matrix), "", _legend(matrix), ""]
    lines += [f"{n}. {_note(note)}" for n, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def text_matrix(matrix: pandas.DataFrame) -> str:
    """Return a path matrix for a terminal, at most 100 columns wide: a line a path and way."""
    notes = matrix_notes(matrix)
    numbers = {cell: n for n, note in enumerate(notes, 1) for cell in note["cells"]}
    dtypes = list(dict.fromkeys(matrix["weights"]))
    found = _by_cell(matrix)
    rows = [["path", *dtypes, ""]]
    for path in dict.fromkeys(matrix["path"]):
        for number, way in enumerate(dict.fromkeys(matrix["via"])):
            cells = [_numbered((path, w, way), found, numbers, "({})") for w in dtypes]
            rows.append(["" if number else path, *cells, _WAYS[way]])
    lines = text_columns(rows, "l" * len(rows[0]))
    for number, note in enumerate(notes, 1):
        mark = f"({number}) "
        lines += textwrap.wrap(
            mark + _note(note, plain=True),
            _WIDTH,
            subsequent_indent=" " * len(mark),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join([*lines, "", *textwrap.wrap(text_totals(matrix), _WIDTH)])


def text_totals(matrix: pandas.DataFrame) -> str:
    """Return the totals as a sentence, with the conditions that they hold for."""
    counts = [f"{_WAYS[way]} {works} of {total}" for way, (works, total) in totals(matrix).items()]
    first = matrix.iloc[0]
    own = ", ".join(f"{name} {version}" for name, version in _backends(matrix).items())
    conditions = (
        f"{first['dtype']} on {first['device']}, torch {first['torch']}, diffusers "
        f"{first['diffusers']}, transformers {first['transformers']}, {own}"
    )
    took = matrix.attrs.get("seconds")
    took = f", {format_seconds(took)}" if took else ""
    return f"Works: {', '.join(counts)} ({conditions}{took})."


def _backends(matrix: pandas.DataFrame) -> dict[str, str]:
    """Return the names and versions of the backends whose words a matrix has."""
    if "backend" not in matrix.columns:  # of an earlier version
        return {DISTRIBUTIONS["quanto"]: matrix.iloc[0]["quanto"]}
    rows = matrix[["backend", "backend_version"]].drop_duplicates().itertuples(index=False)
    return {DISTRIBUTIONS.get(row.backend, row.backend): row.backend_version for row in rows}


def _legend(matrix: pandas.DataFrame) -> str:
    own = matrix["backend"].unique() if "backend" in matrix.columns else ["quanto"]
    return _LEGEND + "".join(_LEGENDS.get(name, "") for name in own)


def matrix_notes(matrix: pandas.DataFrame) -> list[dict]:
    """Return why cells don't work, equal reasons of one path and way told once.

    Returns
    -------
    list of dict
        ``path, via, outcome, reason, weights`` (all dtypes it holds for) and ``cells`` (their
        (path, weights, via)), in the order of the rows.
    """
    notes: dict[tuple, dict] = {}
    for row in matrix.to_dict("records"):
        if row["outcome"] == "works":
            continue
        key = (row["path"], row["via"], row["outcome"], row["reason"])
        note = notes.setdefault(
            key,
            {**dict(zip(("path", "via", "outcome", "reason"), key, strict=True)),
             "weights": [], "cells": []},
        )  # fmt: skip
        note["weights"].append(row["weights"])
        note["cells"].append((row["path"], row["weights"], row["via"]))
    return list(notes.values())


def _by_cell(matrix: pandas.DataFrame) -> dict[tuple, str]:
    rows = matrix[["path", "weights", "via", "outcome"]].itertuples(index=False)
    return {(row.path, row.weights, row.via): row.outcome for row in rows}


def _numbered(cell: tuple, found: dict, numbers: dict, form: str = "<sup>{}</sup>") -> str:
    if cell not in found:
        return ABSENT
    number = numbers.get(cell)
    gap = " " if form.startswith("(") else ""
    return found[cell] + (gap + form.format(number) if number else "")


def _note(note: dict, plain: bool = False) -> str:
    reason = note["reason"] if plain else _as_code(note["reason"])
    where = f"{note['path']}, {', '.join(note['weights'])}, {_WAYS[note['via']]}"
    gap = " " if reason.startswith("while ") else ": "
    return f"{where}: {note['outcome']}{gap}{reason}"


def _as_code(reason: str) -> str:
    """Return a reason with an exception's message set as code: it holds signs of Markdown."""
    stage, colon, message = reason.partition(": ")
    kind = message.partition(":")[0]
    if not (colon and kind.isidentifier()):
        return reason
    return f"{stage}: `` {message} ``" if "`" in message else f"{stage}: `{message}`"
