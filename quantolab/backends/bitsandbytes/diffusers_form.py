"""What plain Diffusers makes of a saved folder: nothing, since none is written."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..forms import MARK, DiffusersForm
from .stored_form import UNSAVED


def diffusers_form(
    module: torch.nn.Module, quantized: dict[str, str], kept: Iterable[str], library: str
) -> DiffusersForm:
    """Return that it can't be told; arguments as for every backend."""
    return DiffusersForm(False, UNSAVED, {"quant_method": MARK, "weights_dtype": "mixed"})
