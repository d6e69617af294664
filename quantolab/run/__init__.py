"""Running recipes: one child process a trial, a journal on disk, events for whoever watches."""

from __future__ import annotations

RUNS = "quantolab-runs"
"""Where runs go that are given no folder."""

REPEATS = 10
"""Rounds, unless another number is asked for. Six have an interval."""
MOST_ROUNDS = 200
"""Where going on until every verdict stands ends, unless another limit is given."""
