"""Running recipes: one child process a trial, a journal on disk, events for whoever watches."""

from __future__ import annotations

RUNS = "quantolab-runs"
"""Where runs go that are given no folder."""
