"""The figures of a comparison. Each is in a file of its own; what they say can be had undrawn."""

from __future__ import annotations

from .grid import grid_content, image_grid
from .tradeoff import plot_tradeoff, tradeoff

__all__ = ["grid_content", "image_grid", "plot_tradeoff", "tradeoff"]
