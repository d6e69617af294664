"""GGUF, a file that other programs read: written here, and read back to check what was written.

No weights word is computed by it; nothing else in quantolab imports its library.
"""

from __future__ import annotations

LIBRARY = "gguf"
"""The module that reads and writes such files."""

PACKAGE = "gguf"
"""What it is called where packages are installed."""

TITLE = "GGUF"
