"""SDNQ, behind the doors of a backend: nothing else in quantolab imports it.

Its weights are quantized by its own function, row by row; its own lists of layers to skip are
never used. `library` imports it without what importing it does to the process.
"""

from __future__ import annotations

LIBRARY = "sdnq"
"""What a module must have been made with to hold layers of this backend."""

PACKAGE = "sdnq"
"""What it is called where packages are installed."""

TITLE = "SDNQ"
