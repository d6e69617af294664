"""What the header of a safetensors file says, word for word: cheap, without torch, no payload read.

`layout` checks whether it can be so.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ..errors import BrokenModelError
from .foreign import foreign
from .json_objects import unique_pairs

DTYPE_WORDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Torch's word for each dtype that a header names. Source: the format's specification."""

_LIMIT = 100_000_000  # bytes; safetensors' own limit


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return what a header says of each tensor, the bytes before the payload, and the file's size.

    Raises
    ------
    BrokenModelError
        If there is no ordinary file, or none that begins with such a header.
    """
    try:
        if path.exists() and not path.is_file():
            raise broken(path, "it isn't an ordinary file")  # a pipe would be waited for
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"GGUF"):
                raise foreign(path, "GGUF", "it begins so")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(_LIMIT, size - 8):
                raise broken(
                    path, f"its first 8 bytes don't give the length of a header in {size} bytes"
                )
            text = file.read(length)
    except OSError as error:
        raise broken(path, str(error)) from error
    if len(text) != length:
        raise broken(path, "it ends inside its header")
    return _tensors(path, text), 8 + length, size


def stored_dtypes(path: Path) -> dict[str, str]:
    """Return the dtype of each tensor, as torch calls it or, if it has no word, as it stands.

    Raises
    ------
    BrokenModelError
        As `read_header`.
    """
    found = {}
    for name, said in read_header(path)[0].items():
        dtype = said.get("dtype") if isinstance(said, dict) else None
        found[name] = DTYPE_WORDS.get(str(dtype), str(dtype))
    return found


def broken(path: Path, why: str) -> BrokenModelError:
    """Return the error for a file that can't be what its name says."""
    return BrokenModelError(f"{path} can't be read as safetensors: {why}")


def _tensors(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise broken(path, f"its header is no JSON that can be read: {error}") from error
    if not isinstance(header, dict):
        raise broken(path, f"its header is a JSON {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise broken(path, "its '__metadata__' is no object")
    return header
