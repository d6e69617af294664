"""torchao, behind the doors of a backend: nothing else in quantolab imports it.

Weights are made by its own tensor classes, row by row, and stand in ordinary Linear layers.
"""

from __future__ import annotations

LIBRARY = "torchao"
"""What a module must have been made with to hold layers of this backend."""

PACKAGE = "torchao"
"""What it is called where packages are installed."""

TITLE = "torchao"
