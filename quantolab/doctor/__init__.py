"""What this machine can do, and which documented paths really work here: ``quantolab doctor``."""

from __future__ import annotations

from .matrix import path_matrix

__all__ = ["path_matrix"]
