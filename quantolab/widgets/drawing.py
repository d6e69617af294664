"""Plots in a page: once for light and once for dark ones."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..report.advised import plot_curve
from ..report.lettering import png
from ..report.tradeoff import plot_tradeoff, tradeoff_axes

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..report.advised import AdviceCurve

_ONE_AT_A_TIME = threading.Lock()  # matplotlib's caches of fonts weren't made for several threads


def tradeoff_html(table: pandas.DataFrame) -> str:
    """Return the trade-off plot for both kinds of page.

    Parameters
    ----------
    table : pandas.DataFrame
        From `results_table`.
    """
    said = "Memory against quality, a point a recipe; the table has the same figures."
    return twice(lambda dark: plot_tradeoff(table, tradeoff_axes(table, dark=dark)), said)


def curve_html(curve: AdviceCurve) -> str:
    """Return the plot of what advice is worth, for both kinds of page."""
    said = "Picture quality against bytes: plain dtypes as points, advised recipes as a line."
    return twice(lambda dark: plot_curve(curve, dark=dark), said)


def twice(draw: Callable[[bool], Axes], said: str) -> str:
    """Return a plot as two images; panel.css shows the one that suits the page.

    Parameters
    ----------
    draw : callable
        Draws it, given whether the page is dark.
    said : str
        What it shows, for those who don't see it.
    """
    with _ONE_AT_A_TIME:
        pictures = {
            page: png(draw(page == "dark").get_figure(root=True)) for page in ("light", "dark")
        }
    return "".join(
        f"<img class='ql-plot ql-on-{page}' alt='{said}' "
        f"style='width:800px;max-width:100%;{'display:none' if page == 'dark' else ''}' "
        f"src='data:image/png;base64,{base64.b64encode(data).decode()}'>"
        for page, data in pictures.items()
    )
