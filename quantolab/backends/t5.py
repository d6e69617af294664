"""What T5's feed-forward does to layers whose weight has a dtype of its own.

transformers casts what it multiplies to the dtype of the weight of ``wo``, unless that is int8 or
no tensor: for a weight that packs values into bytes activations would become whole numbers from 0
to 255. So of such layers it is shown no weight.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

_LAYER = ".wo"
_ENDINGS = ("DenseActDense", "DenseGatedActDense")


def is_cast_to(path: str) -> bool:
    """Return whether a layer is one to whose weight's dtype T5 casts what it is given."""
    return path.endswith(f"DenseReluDense{_LAYER}")


def cure(path: str) -> None:
    """Have the feed-forwards of all T5s that are imported leave packed weights alone.

    Parameters
    ----------
    path : str
        Of a layer that is made; nothing happens for other layers than theirs.
    """
    if not is_cast_to(path):
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and "t5" in name:
            for cls in list(vars(module).values()):
                if isinstance(cls, type) and cls.__name__.endswith(_ENDINGS):
                    _cure(cls)


def _cure(cls: Any) -> None:
    plain = cls.forward
    if hasattr(plain, "quantolab_cured"):
        return

    @functools.wraps(plain)
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        wo = self._modules["wo"]
        weight = getattr(wo, "weight", None)
        if weight is None or weight.dtype in (torch.bfloat16, torch.float16, torch.float32):
            return plain(self, hidden_states)
        self.__dict__["wo"] = _Shown(wo)  # found before the module of that name
        try:
            return plain(self, hidden_states)
        finally:
            del self.__dict__["wo"]

    forward.quantolab_cured = True  # type: ignore[attr-defined]
    cls.forward = forward


class _Shown:
    """A layer that is called like itself and shows no weight."""

    weight = None

    def __init__(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._layer(x)
