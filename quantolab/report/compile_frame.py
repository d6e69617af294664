"""A compile report that shows itself as people read it."""

from __future__ import annotations

import pandas as pd

from ..text_tables import text_columns
from .compiled import ALIGN, HEADERS, cells, notes
from .markup import note, table


class CompileFrame(pd.DataFrame):
    """A frame of plain numbers that shows each row in words and units, with what it means below.

    What is made of it is a plain frame.
    """

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        rows = self.to_dict("records")
        shown = text_columns([HEADERS, *map(cells, rows)], ALIGN, rule=True)
        return "\n".join([*shown, "", *notes(rows)])

    def _repr_html_(self) -> str:
        rows = self.to_dict("records")
        return table(HEADERS, map(cells, rows), align=ALIGN) + "".join(map(note, notes(rows)))
