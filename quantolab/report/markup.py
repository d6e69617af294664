"""Tables and bars as HTML that is legible in light and dark, with a kernel and without.

Colours come from JupyterLab's theme where there is one; elsewhere text keeps the page's colour
and lines are half-transparent grey.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ..units import format_percent

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
    heading = f"white-space:normal;vertical-align:bottom;border-bottom:{LINE};"
    heading += _STICKY if height else ""
    heads = (
        table_cell(text, _style(letter) + heading, "th", scope="col")
        for letter, text in zip(align, headers, strict=True)
    )
    lines = [_aligned_row(row, align) for row in rows]
    if foot is not None:
        lines.append(_aligned_row(foot, align, f"border-top:{LINE};font-weight:600;"))
    above = f"<caption style='{_CAPTION}'>{escaped(caption)}</caption>" if caption else ""
    head = f"<thead>{table_row(heads, 'background:none')}</thead>"
    text = table_of(f"{above}{head}<tbody>{''.join(lines)}</tbody>", _TABLE, css)
    if not height:
        return f"<div class='ql-wide' style='overflow-x:auto'>{text}</div>"
    # Focusable, so that the keyboard scrolls it.
    scroll = f"<div class='ql-scroll' tabindex='0' style='max-height:{height};overflow:auto'>"
    return f"{scroll}{text}</div>"


def pairs(rows: Iterable[tuple[object, object]]) -> str:
    """Return names and what is known of each as a table of two columns, without headings."""
    style = _style("l")
    lines = []
    for name, value in rows:
        head = table_cell(name, f"{style}font-weight:normal;opacity:.75", "th", scope="row")
        lines.append(table_row((head, table_cell(value, style)), "background:none"))
    return table_of(f"<tbody>{''.join(lines)}</tbody>", _TABLE, "ql-table")


# What every table is made of.


def table_of(inner: str, style: str, css: str = "") -> str:
    """Return a table around its rows, which `table_row` makes."""
    named = f" class='{css}'" if css else ""
    return f"<table{named} style='{style}'>{inner}</table>"


def table_row(cells: Iterable[str], style: str = "") -> str:
    """Return a row of cells, which `table_cell` makes."""
    styled = f" style='{style}'" if style else ""
    return f"<tr{styled}>{''.join(cells)}</tr>"


def table_cell(content: object, style: str, tag: str = "td", **attributes: object) -> str:
    """Return a cell, or a heading if `tag` is ``th``; texts are escaped unless they are `Raw`."""
    said = "".join(f" {name}='{value}'" for name, value in attributes.items())
    return f"<{tag}{said} style='{style}'>{escaped(content)}</{tag}>"


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
        f"<span style='display:inline-block;height:100%;width:{format_percent(share, 2, '')};"
        f"background:{colour}'></span>"
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


def _style(letter: str) -> str:
    """Return the style of a cell in a column of this letter."""
    numbers = "white-space:nowrap;font-variant-numeric:tabular-nums;" if letter == "r" else ""
    return f"text-align:{_ALIGNED[letter]};padding:2px 12px 2px 0;vertical-align:top;{numbers}"


def _aligned_row(cells: Sequence[object], align: str, style: str = "") -> str:
    return table_row(
        table_cell(cell, _style(letter) + style) for letter, cell in zip(align, cells, strict=True)
    )
