"""Tables and bars as HTML that is legible in light and dark, with a kernel and without.

Colours come from JupyterLab's theme where there is one; elsewhere text keeps the page's colour
and lines are half-transparent grey.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

LINE = "1px solid rgba(128,128,128,.35)"
_ALIGNED = {"l": "left", "r": "right", "c": "center"}


class Raw(str):
    """Text that is HTML already; every other text is escaped."""

    __slots__ = ()


def escaped(text: object) -> str:
    """Return a text as HTML."""
    return str(text) if isinstance(text, Raw) else html.escape(str(text))


def code(text: str) -> Raw:
    """Return a pattern, a path or a name set as code."""
    return Raw(f"<code style='background:none;color:inherit'>{escaped(text)}</code>")


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    align: str,
    caption: str = "",
    foot: Sequence[object] | None = None,
    height: str = "",
    css: str = "ql-table",
) -> str:
    """Return an HTML table.

    Parameters
    ----------
    headers : sequence of str
        Column headings.
    rows : iterable of sequences
        Cells; texts are escaped unless they are `Raw`.
    align : str
        A letter a column: ``l``, ``r`` or ``c``.
    caption : str
        What the table is about, above it.
    foot : sequence, optional
        Cells of a last row that sums up.
    height : str
        Where given, the most that the table takes, as CSS says it; the rest scrolls. A table that
        is wider than its panel scrolls sideways always.
    css : str
        Its class: a panel has one ``ql-table``, its main one.
    """
    head = "".join(
        f"<th scope='col' style='{_cell(a)}white-space:normal;vertical-align:bottom;"
        f"border-bottom:{LINE};{_STICKY if height else ''}'>"
        f"{escaped(text)}</th>"
        for a, text in zip(align, headers, strict=True)
    )
    body = "".join(f"<tr>{_cells(row, align)}</tr>" for row in rows)
    if foot is not None:
        strong = f"border-top:{LINE};font-weight:600;"
        body += f"<tr>{_cells(foot, align, strong)}</tr>"
    above = f"<caption style='{_CAPTION}'>{escaped(caption)}</caption>" if caption else ""
    text = (
        f"<table class='{css}' style='{_TABLE}'>{above}"
        f"<thead><tr style='background:none'>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    if not height:
        return f"<div class='ql-wide' style='overflow-x:auto'>{text}</div>"
    # Focusable, so that the keyboard scrolls it.
    scroll = f"<div class='ql-scroll' tabindex='0' style='max-height:{height};overflow:auto'>"
    return f"{scroll}{text}</div>"


def pairs(rows: Iterable[tuple[object, object]]) -> str:
    """Return names and what is known of each as a table of two columns, without headings."""
    body = "".join(
        f"<tr style='background:none'><th scope='row' style='{_cell('l')}font-weight:normal;"
        f"opacity:.75'>{escaped(name)}</th><td style='{_cell('l')}'>{escaped(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table class='ql-table' style='{_TABLE}'><tbody>{body}</tbody></table>"


def bar(parts: Sequence[tuple[float, str]], text: str) -> Raw:
    """Return a bar of coloured parts.

    Parameters
    ----------
    parts : sequence of (float, str)
        Share of the whole width, from 0 to 1, and colour.
    text : str
        What the bar says, for those who don't see it.
    """
    inner = "".join(
        f"<span style='display:inline-block;height:100%;width:{share:.2%};background:{colour}'>"
        "</span>"
        for share, colour in parts
        if share > 0
    )
    style = (
        "display:inline-block;width:160px;height:10px;border-radius:3px;overflow:hidden;"
        "background:rgba(128,128,128,.2);line-height:0;vertical-align:middle;white-space:nowrap"
    )
    return Raw(
        f"<span role='img' aria-label='{html.escape(text)}' title='{html.escape(text)}' "
        f"style='{style}'>{inner}</span>"
    )


def note(text: object) -> str:
    """Return a paragraph beside figures: conditions, or what a figure means."""
    return f"<p style='margin:4px 0;line-height:1.4;max-width:80ch'>{escaped(text)}</p>"


def alert(text: object) -> str:
    """Return what is wrong, set apart."""
    return (
        "<div role='alert' style='border-left:3px solid var(--jp-error-color1,#c62828);"
        f"padding:4px 8px;margin:4px 0;line-height:1.4;max-width:90ch'>{escaped(text)}</div>"
    )


_TABLE = (
    "border-collapse:collapse;color:inherit;background:none;margin:4px 0;line-height:1.35;"
    "font-size:13px"
)
_CAPTION = "caption-side:top;text-align:left;padding:2px 0;color:inherit;opacity:.8"
_STICKY = "position:sticky;top:0;background:var(--jp-layout-color0, Canvas);"


def _cell(letter: str) -> str:
    numbers = "white-space:nowrap;font-variant-numeric:tabular-nums;" if letter == "r" else ""
    return f"text-align:{_ALIGNED[letter]};padding:2px 12px 2px 0;vertical-align:top;{numbers}"


def _cells(row: Sequence[object], align: str, style: str = "") -> str:
    return "".join(
        f"<td style='{_cell(a)}{style}'>{escaped(cell)}</td>"
        for a, cell in zip(align, row, strict=True)
    )
