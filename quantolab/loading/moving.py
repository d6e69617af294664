"""Tensors on their way to an accelerator: through pinned memory, in pieces.

From ordinary memory a device can't read by itself: the driver copies into memory of its own first,
and the processor waits for both. Here the processor copies into one of two pinned buffers while the
device reads the other, and goes on to the next tensor meanwhile. What it's worth on which card
``tests/benchmarks/loading_to_card.py`` tells.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch

PINNED = True
"""Whether buffers are used; a benchmark compares both ways."""

_PIECE = 1 << 24  # bytes of a buffer
_LEAST = 1 << 16  # bytes of a tensor from which on it is worth the calls


class Mover:
    """Moves tensors to a device, which has them once `wait` returns or in the order it is asked.

    Parameters
    ----------
    device : str
        Where to. Only one with a memory of its own is reached through pinned memory.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        kind = device.partition(":")[0]
        self._library: Any = getattr(torch, kind) if kind in ("cuda", "xpu") and PINNED else None
        self._buffers: cycle[_Buffer] | None = None

    def stages(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor goes through pinned memory."""
        large = tensor.nbytes >= _LEAST and tensor.is_contiguous()
        return self._library is not None and large and tensor.device.type == "cpu"

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device; its source may be changed or freed from now on."""
        if not self.stages(tensor):
            return tensor.to(self.device)
        buffers = self._pinned()
        if buffers is None:
            return tensor.to(self.device)
        moved = torch.empty_like(tensor, device=self.device)
        source, target = (t.reshape(-1).view(torch.uint8) for t in (tensor, moved))
        stream = self._library.current_stream(self.device)
        for start in range(0, len(source), _PIECE):
            end = min(start + _PIECE, len(source))
            next(buffers).carry(source[start:end], target[start:end], stream)
        return moved

    def wait(self) -> None:
        """Return when the device has all that was moved."""
        if self._buffers is not None:
            self._library.current_stream(self.device).synchronize()

    def _pinned(self) -> cycle[_Buffer] | None:
        """Return the buffers, made when they are first needed; None where none can be had."""
        if self._buffers is None:
            try:
                pair = [_Buffer(self._library.Event()) for _ in range(2)]
            except RuntimeError:  # the system pins no more memory, or none at all
                self._library = None
                return None
            self._buffers = cycle(pair)
        return self._buffers


class _Buffer:
    """Pinned memory, and what tells when the device has read it."""

    def __init__(self, read: Any) -> None:
        self._read = read
        self._memory = torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True)
        self._used = False

    def carry(self, source: torch.Tensor, target: torch.Tensor, stream: Any) -> None:
        """Copy bytes into the buffer, and have the device copy them on."""
        if self._used:
            self._read.synchronize()
        part = self._memory[: len(source)]
        part.copy_(source)
        target.copy_(part, non_blocking=True)
        self._read.record(stream)  # of that device; without a name it would be the current one's
        self._used = True
