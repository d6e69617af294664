"""How a saved model tells plain Diffusers what is quantized, whichever backend did it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MARK = "quantolab"
"""A ``quant_method`` that Diffusers doesn't know: its ``from_pretrained`` raises ValueError."""


@dataclass(frozen=True)
class DiffusersForm:
    """How a folder's ``config.json`` describes its quantized layers."""

    loads: bool
    """Whether plain ``from_pretrained`` rebuilds exactly the layers that the file holds."""
    reason: str
    """Why not, or what to heed; empty if there is nothing to say."""
    quantization_config: dict[str, Any] | None
    """For ``config.json``; None if nothing is quantized."""
