"""``quantolab.json``: what a saved folder says it holds, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import BrokenModelError
from ..files.json_objects import read_object
from ..files.writing import DIGEST
from ..plain_values import from_dict, to_dict
from ..recipes import Recipe
from ..weights import REFERENCE, is_word

RECORD = "quantolab.json"
FORMAT = 1
"""Version of `quantolab.json`; raised when an older quantolab could misread it."""

Dtype = Literal["bfloat16", "float16", "float32", "float64"]


@dataclass(frozen=True)
class PlainDiffusers:
    """What plain Diffusers makes of a folder."""

    loads: bool
    reason: str
    """Why it doesn't load it, or what to heed."""


@dataclass(frozen=True)
class Digests:
    """Digests of a folder's files, by their names."""

    algorithm: str
    files: dict[str, str]


@dataclass(frozen=True)
class Record:
    """A checked `quantolab.json` of one component."""

    cls: str
    """Name of its class; ``class`` in the file."""
    library: str
    recipe: Recipe
    dtype: Dtype
    """What it computes in."""
    quantized_layers: dict[str, str]
    """Weights word by path."""
    skipped_layers: tuple[str, ...]
    reasons: dict[str, str]
    """Why each of them was skipped."""
    cures: tuple[tuple[str, str], ...]
    """(path, name) of what was mended in each layer."""
    tied: dict[str, str]
    buffers: dict[str, Dtype]
    """Dtypes of those that no file holds."""
    plain_diffusers: PlainDiffusers
    versions: dict[str, str]
    digest: Digests
    format: int = field(default=FORMAT)

    def to_file(self) -> dict[str, Any]:
        """Return the values as the file has them, in its order."""
        values = to_dict(self)
        first = {"format": values.pop("format"), "class": values.pop("cls")}
        return {**first, **values}


def read_record(folder: Path) -> Record | None:
    """Return the checked `quantolab.json` of a folder, or None if there is none.

    Raises
    ------
    BrokenModelError
        If it isn't what quantolab writes.
    """
    path = folder / RECORD
    if not path.exists() and not path.is_symlink():
        return None
    values = read_object(path, folder)
    if values.get("format") != FORMAT:
        raise BrokenModelError(
            f"{path} has format {values.get('format')!r}; this quantolab reads {FORMAT}"
        )
    try:
        record = from_dict(Record, {**values, "cls": values.get("class")})
        words = set(record.quantized_layers.values())
        if bad := [word for word in sorted(words) if not is_word(word) or word == REFERENCE]:
            raise ValueError(f"weights dtype {bad[0]!r} is not known")
        if record.digest.algorithm != DIGEST:
            raise ValueError(f"digest algorithm {record.digest.algorithm!r}; known: {DIGEST}")
    except ValueError as error:
        raise BrokenModelError(f"{path} isn't what quantolab writes: {error}") from error
    return record
