"""A results table that has all its columns and shows those that decide."""

from __future__ import annotations

import pandas as pd

from .markup import note

SHOWN = (
    "recipe", "status", "reason", "weight_bytes", "peak_bytes", "load_seconds", "latency_seconds",
    "speedup", "verdict", "psnr_db", "ssim", "flip", "floor_multiple",
)  # fmt: skip


class ShortFrame(pd.DataFrame):
    """A frame that shows the columns of `SHOWN` that hold anything, and says how many it has more.

    What is made of it is a plain frame, which shows all of its own.
    """

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        return f"{self._short()!r}\n{self._more()}"

    def _repr_html_(self) -> str:
        return f"{self._short()._repr_html_()}{note(self._more())}"

    def _short(self) -> pd.DataFrame:
        names = [n for n in SHOWN if n in self.columns and self[n].notna().any()]
        return pd.DataFrame(self)[names]

    def _more(self) -> str:
        return (
            f"{len(self.columns)} columns in all: results_table(comparison) shows them, "
            "table.columns names them."
        )
