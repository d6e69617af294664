"""A LoRA as it is asked for: which file, and how strongly it counts."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ..errors import ArgumentError
from ..files.adapters import check_lora, check_peft
from ..files.digests import file_digest
from ..records import Lora

AskedLora = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


def find_lora(asked: AskedLora) -> tuple[Lora, Path]:
    """Return the LoRA that is asked for, and where its file lies.

    Parameters
    ----------
    asked : str, path or (path, float)
        ``FILE`` or ``FILE=WEIGHT``, the weight a scale of what the LoRA adds, 1 by default. A
        text that is the name of a file is that file, whatever signs are in it.

    Raises
    ------
    ArgumentError
        If the weight is no number, or the file is no LoRA.
    ModelNotFoundError, BrokenModelError
        If there is no such file, or it can't be read.
    UnsupportedError
        If the library that loads LoRAs isn't installed.
    """
    name, weight = file_and_weight(asked)
    path = Path(name).expanduser().absolute()
    check_lora(path)
    check_peft()
    return Lora(name, weight, file_digest(path)), path


def file_and_weight(asked: AskedLora) -> tuple[str, float]:
    """Return what `find_lora` takes as a file's name and a weight; the file isn't looked at.

    Raises
    ------
    ArgumentError
        If the weight is no number.
    """
    if isinstance(asked, tuple):
        name, weight = os.fspath(asked[0]), float(asked[1])
        if not math.isfinite(weight):
            raise ArgumentError(f"the weight of the LoRA {name!r} must be a number, not {weight}")
        return name, weight
    text = os.fspath(asked)
    name, sign, said = text.rpartition("=")
    if not sign or Path(text).expanduser().exists():
        return text, 1.0
    try:
        weight = float(said)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ArgumentError(
            f"the weight of the LoRA {name!r} must be a number, not {said!r} (FILE=WEIGHT, as in "
            f"{name or 'style.safetensors'}=0.8)"
        )
    return name, weight
