"""A LoRA's file, looked at before anything is loaded: its header alone, without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import ArgumentError, ModelNotFoundError, UnsupportedError
from .headers import read_header

SUFFIX = ".safetensors"
"""How Diffusers wants such a file's name to end."""

USUAL_NAME = "pytorch_lora_weights.safetensors"
"""What Diffusers calls the file in a folder."""

_SIGNS = ("lora", "lokr_")
"""Parts of the names of such tensors, one of which each has that Diffusers loads."""

_PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save's archive, and what it wrote before


def check_peft() -> None:
    """Make sure that the library is there by which Diffusers loads LoRAs; doesn't import it.

    Raises
    ------
    UnsupportedError
        With what to install.
    """
    if importlib.util.find_spec("peft") is None:
        raise UnsupportedError(
            "a LoRA needs peft, which isn't installed: pip install 'quantolab[lora]'"
        )


def check_lora(path: Path) -> None:
    """Make sure that a file may be a LoRA, as far as its header tells.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    BrokenModelError
        If it can't be read as safetensors.
    ArgumentError
        If it is a folder, a pickle, or holds something else; if Diffusers would leave out a part.
    """
    if path.is_dir():
        usual = path / USUAL_NAME
        hint = f": {str(usual)!r} may be meant" if usual.is_file() else ""
        raise ArgumentError(f"the LoRA {str(path)!r} is a folder, and a file is needed{hint}")
    if not path.exists():
        raise ModelNotFoundError(f"the LoRA {str(path)!r} isn't there")
    if path.is_file() and _is_pickle(path):
        raise ArgumentError(
            f"the LoRA {str(path)!r} is a pickle, which can run any code while it is read: only "
            "safetensors files are taken"
        )
    if path.suffix != SUFFIX:
        raise ArgumentError(
            f"the LoRA {str(path)!r} must be a safetensors file whose name ends in {SUFFIX}: "
            "Diffusers takes no other"
        )
    names = list(read_header(path)[0])
    if not any(sign in name for name in names for sign in _SIGNS):
        some = f", {names[0]!r} for one," if names else ""
        raise ArgumentError(
            f"{str(path)!r} is no LoRA: none of its {len(names)} tensors{some} has a name of one "
            "(lora_A, lora_down or the like)"
        )
    scales = [name for name in names if "dora_scale" in name]
    if scales:
        raise ArgumentError(
            f"{str(path)!r} is a DoRA ({scales[0]!r}), of which Diffusers leaves out the scales: "
            "the pictures would be those of something else"
        )


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False  # whoever reads its header says why
    # A safetensors file begins with the length of its header, whose high bytes are 0.
    return start.startswith(_PICKLES[0]) or (start[:1] == _PICKLES[1] and 0 not in start[1:4])
