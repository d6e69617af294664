"""One cell of the path matrix, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One path, one weights dtype, one way."""

    path: str
    weights: str
    via: str
    outcome: str | None = None
    """``works``, ``fails``, ``misleads`` or ``unsupported``; None before it ran."""
    reason: str = ""
    seconds: float = 0.0
