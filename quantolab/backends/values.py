"""Quantized values and their scales as plain matrices: what every backend's form can be read as."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Values:
    """A weight as ``data * scale + zero``, groups of each row with a scale and a zero of their own.

    Both are float32, whatever a backend holds them in.
    """

    data: torch.Tensor
    """Of shape (out_features, in_features); int8, uint8 or float8_e4m3fn."""
    scale: torch.Tensor
    """Of shape (out_features, groups)."""
    zero: torch.Tensor | None
    """Likewise; None where all are 0."""
    bits: int
    """Of one value."""

    @property
    def group(self) -> int:
        """How many values of a row share a scale."""
        return int(self.data.shape[1] // self.scale.shape[1])

    @property
    def kind(self) -> str:
        """Name of the values' own type: ``int8``, ``float8_e4m3fn``, ``uint4``, ..."""
        if self.data.dtype.is_floating_point:
            return str(self.data.dtype).removeprefix("torch.")
        return f"{'uint' if self.data.dtype == torch.uint8 else 'int'}{self.bits}"

    def dequantized(self) -> torch.Tensor:
        """Return the weight in float32."""
        rows, columns = self.data.shape
        plain = self.data.float().reshape(rows, -1, self.group) * self.scale.unsqueeze(-1)
        if self.zero is not None:
            plain += self.zero.unsqueeze(-1)
        return plain.reshape(rows, columns)
