"""How far the path matrix is: a bar on a terminal or in a notebook, else a line a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ..telling import has_bars, say_line

if TYPE_CHECKING:
    from .outcomes import Cell


class CellBar:
    """Shows each cell that it is called with, on standard error."""

    def __init__(self) -> None:
        self._plain = not has_bars()
        self._bar: tqdm | None = None

    def __call__(self, cell: Cell, done: int, total: int) -> None:
        """Show one finished cell."""
        line = f"{cell.path}, {cell.weights}, {cell.via}: {cell.outcome}"
        if self._plain:
            say_line(f"{done:>3} of {total}  {line}")
            return
        if self._bar is None:
            self._bar = tqdm(total=total, unit="cell", leave=False)
        self._bar.set_postfix_str(line, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
