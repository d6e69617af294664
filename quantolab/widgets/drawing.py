"""The trade-off plot in a page: once for light and once for dark ones."""

from __future__ import annotations

import base64
import threading
from typing import TYPE_CHECKING

from ..report.lettering import png
from ..report.tradeoff import plot_tradeoff, tradeoff_axes

if TYPE_CHECKING:
    import pandas

_ONE_AT_A_TIME = threading.Lock()  # matplotlib's caches of fonts weren't made for several threads


def tradeoff_html(table: pandas.DataFrame) -> str:
    """Return the plot as two images; panel.css shows the one that suits the page.

    Parameters
    ----------
    table : pandas.DataFrame
        From `results_table`.
    """
    said = "Memory against quality, a point a recipe; the table has the same figures."
    with _ONE_AT_A_TIME:
        pictures = {
            page: png(
                plot_tradeoff(table, tradeoff_axes(table, dark=page == "dark")).get_figure(
                    root=True
                )
            )
            for page in ("light", "dark")
        }
    return "".join(
        f"<img class='ql-plot ql-on-{page}' alt='{said}' "
        f"style='width:800px;max-width:100%;{'display:none' if page == 'dark' else ''}' "
        f"src='data:image/png;base64,{base64.b64encode(data).decode()}'>"
        for page, data in pictures.items()
    )
