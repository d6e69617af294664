"""Quanto as its makers ship it, without our cures: what we compare ourselves with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...weights import weights_of
from . import cures
from .layers import QuantoLinear  # noqa: F401 - applies the cures, which are undone here

_LOCK = "lock"  # what torch.utils.cpp_extension leaves while it builds


@dataclass(frozen=True)
class ExtensionState:
    """What became of one C++ extension that Quanto builds at first use."""

    name: str
    built: bool
    lock: Path | None
    """A lock in its folder: something builds right now, or did and was killed. Quanto waits for
    it without end."""
    folder: Path


def extension_states() -> tuple[ExtensionState, ...]:
    """Return the state of each extension that plain Quanto would build on this machine."""
    from optimum.quanto.library.extensions import extension

    known = {**extension._extensions, **cures.left_out}
    states = []
    for name, ext in known.items():
        folder = Path(ext.build_directory)
        built = any(folder.glob(f"{name}*.so")) or any(folder.glob(f"{name}*.pyd"))
        lock = folder / _LOCK
        states.append(ExtensionState(name, built, lock if lock.exists() else None, folder))
    return tuple(states)


def use_as_shipped(build_folder: Path) -> None:
    """Undo our cures in this process: Quanto builds its extensions at first use again.

    Parameters
    ----------
    build_folder : Path
        Where they are built, instead of inside the installed package.
    """
    from optimum.quanto.library.extensions import extension

    extension._extensions.update(cures.left_out)
    cures.left_out.clear()
    for name, ext in extension._extensions.items():
        ext._lib = None
        ext.build_directory = str(build_folder / name)


def first_unpack(device: str) -> None:
    """Unpack one byte as plain Quanto does at the first int4 or int2 forward."""
    torch.ops.quanto.unpack(torch.zeros(1, 8, dtype=torch.uint8, device=device), 4)


def save_with_quanto(model: torch.nn.Module, weights: str, folder: Path) -> torch.nn.Module:
    """Quantize a Diffusers model and save it with nothing but Quanto; return the model.

    Parameters
    ----------
    model : torch.nn.Module
        Unquantized; changed in place.
    weights : str
        Weights dtype.
    folder : Path
        Gets ``config.json``, ``quanto_qmap.json`` and safetensors.
    """
    from optimum.quanto import QuantizedDiffusersModel

    class Quantized(QuantizedDiffusersModel):
        base_class = type(model)

    quantized = Quantized.quantize(model, weights=weights_of(weights).name)
    quantized.save_pretrained(folder)
    return model


def never_build() -> None:
    """Leave out, in this process, the extensions that would have to be built first."""
    from optimum.quanto.library.extensions import extension

    for state in extension_states():
        if state.name != "quanto_cpp" and not state.built:  # `cures.unpack` stands for the C++
            extension._extensions.pop(state.name, None)
