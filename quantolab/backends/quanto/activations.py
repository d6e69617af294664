"""What flows into a layer is quantized too, by one scale that calibration has found.

As Quanto quantizes the inputs of its layers: symmetrically, one scale a layer, the same for every
input. Outputs aren't: what takes them (sums, norms, attention) computes in the compute dtype, and
Quanto's own calibration switches theirs off for that reason. A scale that isn't known yet is NaN,
and multiplying by such a layer is refused. A product of int8 by int8 is one of whole numbers;
all others are made of the values that the inputs stand for after they were rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from optimum.quanto import QBytesTensor, WeightQBytesTensor, qtypes, quantize_activation

from ...errors import ArgumentError
from ...weights import weights_of
from .products import multiplied_by


@dataclass
class Inputs:
    """How what flows into a layer is quantized."""

    word: str
    """``"int8"`` or ``"float8"``."""
    seen: Seen | None = None
    """What has flowed by, while it is calibrated."""
    known: bool = False
    """Whether the layer's scale was looked at and is a number."""


@dataclass
class Seen:
    """What has flowed into a layer while it was calibrated."""

    largest: torch.Tensor | None = None
    rows: set[int] = field(default_factory=set)
    """Dimensions of the inputs."""

    def add(self, x: torch.Tensor) -> None:
        """Look at one input."""
        largest = x.detach().abs().amax()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.rows.add(x.dim())


def quantize_inputs(layer: Any, word: str, scale: torch.Tensor | None = None) -> None:
    """Have a layer quantize what flows into it; without a scale it waits to be calibrated.

    Parameters
    ----------
    layer : QuantoLinear
        The layer.
    word : str
        ``"int8"`` or ``"float8"``.
    scale : torch.Tensor, optional
        The one scale, of no dimension.
    """
    layer.inputs = Inputs(word)
    old = layer.input_scale
    layer._buffers["input_scale"] = (
        torch.full_like(old, torch.nan) if scale is None else scale.to(old.dtype).reshape(())
    )


def keep_inputs(layer: Any) -> None:
    """Have a layer leave what flows into it as it is."""
    layer.inputs = None
    layer._buffers["input_scale"] = torch.ones_like(layer.input_scale)


def watch(layer: Any) -> None:
    """Have a layer look at what flows into it, and leave it as it is meanwhile."""
    layer.inputs.seen = Seen()


def calibrated(layer: Any) -> bool:
    """End a layer's watch and set its scale; whether anything had flowed into it."""
    inputs, seen = layer.inputs, layer.inputs.seen
    inputs.seen = None
    if seen is None or seen.largest is None:
        return False
    most = qtypes[weights_of(inputs.word).name].qmax
    scale = (seen.largest.float() / most).to(layer.input_scale.dtype)
    layer._buffers["input_scale"] = torch.where(scale > 0, scale, torch.ones_like(scale))
    inputs.known = True
    return True


def product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` with x quantized.

    Raises
    ------
    ArgumentError
        If the layer isn't calibrated.
    """
    inputs, plainly = layer.inputs, layer.plain_product
    if inputs.seen is not None:
        inputs.seen.add(x)
        return multiplied_by(x, layer.qweight, layer.bias, plainly)
    if not inputs.known:
        if not bool(torch.isfinite(layer.input_scale)):
            raise ArgumentError(
                f"layer {layer.name!r} quantizes what flows into it to {inputs.word}, by a scale "
                "that isn't known yet: quantolab.calibrate(module, pipe, prompts) finds it"
            )
        inputs.known = True
    weight = layer.qweight
    rounded: Any = quantize_activation(
        x, qtype=qtypes[weights_of(inputs.word).name], scale=layer.input_scale
    )
    whole = inputs.word == "int8" and type(weight) is WeightQBytesTensor
    if whole and weight._data.dtype == torch.int8 and isinstance(rounded, QBytesTensor):
        return torch.nn.functional.linear(rounded, weight, layer.bias)
    return multiplied_by(rounded.dequantize(), weight, layer.bias, plainly)
