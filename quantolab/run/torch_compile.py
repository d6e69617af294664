"""Ways of compiling a denoiser, and a cache that is the process's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError

if TYPE_CHECKING:
    import torch

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "fullgraph": {"fullgraph": True},
    "max-autotune": {"mode": "max-autotune"},
    "dynamic": {"dynamic": True},
    "repeated-blocks": {"fullgraph": True},
}
"""Ways of compiling a denoiser, and what each passes to ``torch.compile``."""


def compile_denoiser(denoiser: torch.nn.Module, way: str) -> None:
    """Compile a denoiser in place in one of the `WAYS`; nothing is traced before its first call.

    Raises
    ------
    UnsupportedError
        If the class names no repeated blocks.
    """
    if way != "repeated-blocks":
        denoiser.compile(**WAYS[way])
        return
    if not getattr(denoiser, "_repeated_blocks", None):
        raise UnsupportedError(f"{type(denoiser).__name__} names no repeated blocks")
    denoiser.compile_repeated_blocks(**WAYS[way])


def use_own_cache(folder: Path) -> None:
    """Make this process compile into its job's own folder.

    A cache that an earlier process filled would hide what compiling costs, and one that was killed
    while it compiled leaves a cut library there, which breaks every later run.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
