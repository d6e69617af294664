"""What other rooms need of GGUF: blocks, files and their names."""

from __future__ import annotations

from .blocks import BLOCK, TYPES, best_type, blocks_bytes, carried, made, plain
from .writing import MARK, PLAIN, Entry, notes_of, read_gguf, write_gguf

__all__ = [
    "BLOCK",
    "MARK",
    "PLAIN",
    "TYPES",
    "Entry",
    "best_type",
    "blocks_bytes",
    "carried",
    "made",
    "notes_of",
    "plain",
    "read_gguf",
    "write_gguf",
]
