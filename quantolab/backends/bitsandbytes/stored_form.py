"""Layers with bitsandbytes' values: they are run and counted here, and never written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import UnsupportedError
from ...files.layout import Piece
from .layers import BitsAndBytesLinear

UNSAVED = (
    "weights of bitsandbytes can't be saved here: Diffusers writes and reads their form with a "
    "GPU only; save the model quantized to words of Quanto, SDNQ or torchao"
)


def owns(part: torch.nn.Module) -> bool:
    """Return whether a layer was made here."""
    return isinstance(part, BitsAndBytesLinear)


def word_of(part: torch.nn.Module, path: str = "") -> str:
    """Return the weights word of a layer that was made here."""
    return str(part.quantolab_word)


def computes_in(layer: torch.nn.Module) -> torch.dtype:
    """Return what a layer computes in, which none of its tensors tells."""
    dtype: torch.dtype = layer.compute_dtype
    return dtype


def piece_of(layer: torch.nn.Module, prefix: str, path: str) -> Piece:
    """Refuse to say what a file holds of a layer.

    Raises
    ------
    UnsupportedError
        Always.
    """
    raise UnsupportedError(f"layer {path!r}: {UNSAVED}")


def plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight that a layer stands for."""
    with torch.no_grad():
        plain: Any = layer
        return plain.dequantized()


def layers_in(specs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the layers of which tensors are there in a form that can be read: none."""
    return ()
