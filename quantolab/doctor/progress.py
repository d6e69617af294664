"""How far the path matrix is: a bar on a terminal or in a notebook, else a line a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..telling import StepBar

if TYPE_CHECKING:
    from .outcomes import Cell


class CellBar:
    """Shows each cell that it is called with, on standard error."""

    def __init__(self) -> None:
        self._bar = StepBar("cell")

    def __call__(self, cell: Cell, done: int, total: int) -> None:
        """Show one finished cell."""
        self._bar(f"{cell.path}, {cell.weights}, {cell.via}: {cell.outcome}", done, total)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
