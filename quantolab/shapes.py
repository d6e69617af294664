"""Shapes of layers: what models list, backends quantize and plans add up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """Shape of one Linear layer; its weight is a matrix of shape (out_features, in_features)."""

    path: str
    in_features: int
    out_features: int
    bias: bool

    @property
    def leaf(self) -> str:
        """Last part of the path: all that Diffusers' own skip list looks at."""
        return self.path.rpartition(".")[2]

    @property
    def parameters(self) -> int:
        """Number of weights, bias not counted: what quantizing shrinks."""
        return self.in_features * self.out_features


def block_of(path: str) -> str:
    """Return the repeated block that a layer lies in, or the outermost container, or itself.

    Examples
    --------
    >>> block_of("transformer_blocks.3.attn.to_q"), block_of("norm_out.linear")
    ('transformer_blocks.3', 'norm_out')
    """
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])
