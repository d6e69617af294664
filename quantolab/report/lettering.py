"""Text in figures that looks the same everywhere, and figures that Jupyter shows by themselves."""

from __future__ import annotations

import functools
import io
import warnings
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

INK, INK_ON_DARK = "#222222", "#E0E0E0"
"""What is written with, on light and on dark pages."""

DARK_PAPER = "#212121"
"""What lies on JupyterLab's dark page."""

POINTS = 72
"""Points an inch."""

_LATIN = "DejaVu Sans"  # comes with matplotlib, so a figure is the same on every machine
_OTHER_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "WenQuanYi Zen Hei", "Arial Unicode MS",
)  # fmt: skip


class ShownFigure(Figure):
    """A figure that a notebook shows as a cell's last line, without pyplot.

    pyplot keeps every figure alive until it is closed, and its settings belong to the reader of
    the notebook. A bare `Figure`, though, is shown by Jupyter only after pyplot was imported.
    """

    def _repr_png_(self) -> bytes:
        return png(self)


class ShownAxes(Axes):
    """Axes in a figure of their own, which a notebook shows as a cell's last line."""

    def _repr_png_(self) -> bytes:
        return png(self.get_figure(root=True))


def page_axes(
    size: tuple[float, float], place: tuple[float, float, float, float], *, dark: bool, dpi: int
) -> Axes:
    """Return axes in a figure of their own, for a light or a dark page.

    Parameters
    ----------
    size : (float, float)
        Of the figure, in inches.
    place : (float, float, float, float)
        Left, bottom, width and height of the axes, as shares of the figure.
    dark : bool
        Whether the page behind is dark.
    dpi : int
        Pixels an inch.
    """
    ink, paper = (INK_ON_DARK, DARK_PAPER) if dark else (INK, "white")
    figure = ShownFigure(figsize=size, dpi=dpi, facecolor=paper)
    ax = figure.add_axes(place, axes_class=ShownAxes, facecolor=paper)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(ink)
    ax.tick_params(which="both", colors=ink, labelsize=9)
    ax.xaxis.label.set(color=ink, size=9)
    ax.yaxis.label.set(color=ink, size=9)
    ax.grid(visible=True, color=ink, alpha=0.15, linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file of exactly its own size and resolution."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A prompt in a script that no font here has; boxes in the picture say it well enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


@functools.cache
def font_families() -> tuple[str, ...]:
    """Return the fonts to write with: the first that has a letter is used for it."""
    installed = set(font_manager.get_font_names())
    return (_LATIN, *(name for name in _OTHER_SCRIPTS if name in installed))


def lettering(size: float, *, bold: bool = False, colour: str = INK) -> dict[str, Any]:
    """Return keywords for a matplotlib text that owes nothing to the reader's settings.

    Dollar signs stay dollar signs: prompts and paths aren't formulae.
    """
    return {
        "family": list(font_families()),
        "fontsize": size,
        "fontweight": "bold" if bold else "normal",
        "fontstyle": "normal",
        "color": colour,
        "parse_math": False,
        "usetex": False,
    }


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width in inches of one line at a size in points."""
    font = FontProperties(family=_LATIN, size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / POINTS


def wrapped(
    text: str, width: float, size: float, *, bold: bool = False, most: int | None = None
) -> tuple[str, ...]:
    """Return a text as lines no wider than `width` inches, long words broken.

    Parameters
    ----------
    text : str
        Words; any white space between them counts as one space.
    width : float
        Inches a line may have.
    size : float
        Font size in points.
    bold : bool
        Whether it will be set in bold, which is wider.
    most : int, optional
        Lines to return at most; the last one ends in an ellipsis where something is left out.

    Examples
    --------
    >>> wrapped("a red circle above a blue square", 1.2, 9)
    ('a red circle above', 'a blue square')
    """

    def fits(line: str) -> bool:
        return text_width(line, size, bold=bold) <= width

    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if fits(longer):
            line = longer
            continue
        if line:
            lines.append(line)
        while not fits(word):
            head = _longest_head(word, fits)
            lines.append(head)
            word = word[len(head) :]
        line = word
    lines += [line] if line else []
    if most is None or len(lines) <= most:
        return tuple(lines)
    last = lines[most - 1]
    while last and not fits(last + "…"):
        last = last[:-1]
    return (*lines[: most - 1], last.rstrip(" ,.") + "…")


def _longest_head(word: str, fits: Any) -> str:
    """As much of a word as fits, ended after a dot, slash or underscore if one is near."""
    end = len(word) - 1
    while end > 1 and not fits(word[:end]):
        end -= 1
    for cut in range(end, end // 2, -1):
        if word[cut - 1] in "._/-,":
            return word[:cut]
    return word[:end]
