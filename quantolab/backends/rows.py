"""A weight some rows at a time: rows have scales of their own, so the bits are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_VALUES = 1 << 21  # at a time: 8 MB in float32
STEP = 8
"""Rows are taken in multiples of it, so that packed values of any width fill whole bytes."""


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Yield the rows of a matrix in pieces that need little memory beside it."""
    step = max(STEP, _VALUES // max(columns, 1) // STEP * STEP)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def by_rows(
    weight: torch.Tensor, make: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return what a function makes of a weight, made some rows at a time.

    Parameters
    ----------
    weight : torch.Tensor
        A matrix.
    make : callable
        Takes rows of it and returns tensors whose first dimension is in proportion to the rows.
    """
    rows, columns = weight.shape
    parts: dict[str, torch.Tensor] = {}
    filled: dict[str, int] = {}
    for rows_here in row_slices(rows, columns):
        share = rows_here.stop - rows_here.start
        for name, value in make(weight[rows_here]).items():
            if share == rows:
                parts[name] = value
                continue
            if name not in parts:
                size = value.shape[0] * rows // share
                parts[name] = value.new_empty((size, *value.shape[1:]))
            start = filled.get(name, 0)
            parts[name][start : start + value.shape[0]] = value
            filled[name] = start + value.shape[0]
    return parts
