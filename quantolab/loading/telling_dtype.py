"""What a model computes in, where none of its tensors tells: its library asks the first of them.

Scales of other backends are float32, and their float8 weights plain tensors. A pipeline that asks
``model.dtype`` would make its inputs in that.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backends import computes_in

_TOLD = "quantolab_dtype"


def let_libraries_tell_dtype(module: torch.nn.Module) -> None:
    """Let the ``dtype`` of a model be what its quantized layers compute in."""
    module.__dict__.pop(_TOLD, None)
    found = next((d for part in module.modules() if (d := computes_in(part)) is not None), None)
    if found is None:
        return
    for base in type(module).__mro__:
        shipped = base.__dict__.get("dtype")
        if isinstance(shipped, property):
            if base.__module__.partition(".")[0] not in ("diffusers", "transformers"):
                return
            if not getattr(shipped.fget, "_quantolab_asks", False):
                base.dtype = _asking(shipped)  # type: ignore[attr-defined]
            module.__dict__[_TOLD] = found
            return


def _asking(shipped: property) -> property:
    def dtype(self: Any) -> torch.dtype:
        told = self.__dict__.get(_TOLD)
        return told if told is not None else shipped.fget(self)  # type: ignore[misc]

    dtype.__doc__ = shipped.__doc__
    dtype._quantolab_asks = True  # type: ignore[attr-defined]
    return property(dtype)
