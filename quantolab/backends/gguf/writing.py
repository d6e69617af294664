"""A file in GGUF's form: planned from shapes, written tensor by tensor, and read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from .blocks import blocks_bytes, plain

PLAIN = "F32"
"""Type of what isn't quantized: of all, the one that holds bfloat16 exactly and is read as it is
(Diffusers takes the bytes of a BF16 bias for numbers)."""

MARK = "quantolab.version"
"""Name of the note by which files are known that were written here."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    kind: str
    """`PLAIN`, or one of ``blocks.TYPES``."""
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]
    """Makes it when its turn comes: float32 of its shape, or bytes a row."""


def write_gguf(
    path: Path, architecture: str, notes: dict[str, str], entries: Iterable[Entry]
) -> None:
    """Write a file, one tensor in memory at a time.

    Parameters
    ----------
    path : Path
        A new file.
    architecture : str
        What other programs call the model: ``"flux"``, ``"sd3"``, ...
    notes : dict
        Further texts for its head, by their names.
    entries : iterable of Entry
        Its tensors.
    """
    entries = tuple(entries)
    kinds = [entry.kind for entry in entries if entry.kind != PLAIN]
    file = gguf.GGUFWriter(path, architecture)
    file.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if kinds:
        commonest = max(sorted(set(kinds)), key=kinds.count)
        file.add_file_type(gguf.LlamaFileType[f"MOSTLY_{commonest}"])
    for name, text in notes.items():
        file.add_string(name, text)
    for entry in entries:
        kind = gguf.GGMLQuantizationType[entry.kind]
        if entry.kind == PLAIN:
            size = int(np.prod(entry.shape)) * 4
            file.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), size, kind)
        else:
            size = blocks_bytes(entry.shape, entry.kind)
            rows = (*entry.shape[:-1], size // int(np.prod(entry.shape[:-1])))
            file.add_tensor_info(entry.name, rows, np.dtype(np.uint8), size, kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    for entry in entries:
        file.write_tensor_data(entry.value())
    file.close()
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def read_gguf(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the name, the type and the value in float32 of each tensor of a file."""
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(size) for size in tensor.shape[::-1])
        data = np.array(tensor.data)
        kind = str(tensor.tensor_type.name)
        yield tensor.name, kind, (data if kind == PLAIN else plain(data, kind)).reshape(shape)


def notes_of(path: Path) -> dict[str, str]:
    """Return the texts in a file's head; empty for a file that isn't one of these."""
    try:
        fields = gguf.GGUFReader(path).fields.values()
    except (ValueError, OSError, IndexError, KeyError):
        return {}
    texts = (f for f in fields if f.types == [gguf.GGUFValueType.STRING])
    return {field.name: str(field.contents()) for field in texts}
