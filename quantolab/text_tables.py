"""Tables as text: columns that are as wide as their widest cell, for a terminal and Markdown.

Imports nothing of ours, so that any room can print a table.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from unicodedata import category

GAP = "  "
"""What stands between two columns."""


def text_columns(
    rows: Sequence[Sequence[str]], align: str, *, rule: bool = False, width: int | None = None
) -> list[str]:
    """Return a table's lines, one a row, without blanks at their ends.

    Parameters
    ----------
    rows : sequence of sequences of str
        Cells, as many in every row; headings are a row like any other.
    align : str
        A letter a column: ``l`` or ``r``.
    rule : bool
        Whether a line of dashes stands under the first row.
    width : int, optional
        Characters that a line may have; what goes over is cut, with a sign.

    Examples
    --------
    >>> text_columns([("weights", "bytes"), ("int4", "7.1 GB")], "lr")
    ['weights   bytes', 'int4     7.1 GB']
    """
    widths = column_widths(rows)
    lines = [text_line(row, widths, align) for row in rows]
    if rule:
        lines.insert(1, "-" * table_width(widths))
    return lines if width is None else [cut(line, width) for line in lines]


def column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column: that of its widest cell."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def table_width(widths: Sequence[int]) -> int:
    """Return the characters that columns of these widths take, with the gaps between them."""
    return sum(widths) + len(GAP) * (len(widths) - 1)


def text_line(cells: Sequence[str], widths: Sequence[int], align: str) -> str:
    """Return one row, without blanks at its end."""
    return GAP.join(padded(cells, widths, align)).rstrip()


def padded(cells: Sequence[str], widths: Sequence[int], align: str) -> list[str]:
    """Return the cells of one row, each as wide as its column."""
    return [
        cell.rjust(width) if letter == "r" else cell.ljust(width)
        for cell, width, letter in zip(cells, widths, align, strict=True)
    ]


def cut(line: str, width: int) -> str:
    """Return a line of at most so many characters; one that was cut ends in a sign.

    Examples
    --------
    >>> cut("too long", 6), cut("fits", 6)
    ('too l…', 'fits')
    """
    return line if len(line) <= width else line[: width - 1] + "…"


def markdown_columns(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    r"""Return the lines of a Markdown table that is legible as it is; the first row is its head.

    Cells are taken as they are: who calls escapes what Markdown would read as marks.

    Examples
    --------
    >>> print(*markdown_columns([("weights", "bytes"), ("int4", "7.1 GB")], "lr"), sep="\n")
    | weights |  bytes |
    | ------- | -----: |
    | int4    | 7.1 GB |
    """
    widths = column_widths(rows)
    head, *body = (padded(row, widths, align) for row in rows)
    rules = [
        "-" * (width - 1) + ":" if letter == "r" else "-" * width
        for width, letter in zip(widths, align, strict=True)
    ]
    return [markdown_line(cells) for cells in (head, rules, *body)]


def markdown_line(cells: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def printable(text: str, but: str = "\n") -> str:
    r"""Return a text that does nothing to a terminal: what isn't a sign stands as its escape.

    Names in strangers' files may hold what moves the cursor, or ends a line.

    Parameters
    ----------
    text : str
        Any.
    but : str
        Characters to leave as they are.

    Examples
    --------
    >>> print(printable("a\x1b[2Jb\nc", but=""))
    a\x1b[2Jb\nc
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in but or category(sign) == "Zs" else _escape(sign)
        for sign in text
    )


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


class ShownAsText:
    """A record that a notebook shows as the lines that it prints, escaped."""

    def _repr_html_(self) -> str:
        return f"<pre style='white-space:pre-wrap'>{html.escape(str(self))}</pre>"
