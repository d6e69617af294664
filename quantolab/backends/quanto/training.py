"""A Linear layer that is trained while it computes as it will once quantized.

The weight stays an ordinary parameter. Each forward quantizes it anew, to the very bits that
freezing makes of it, and multiplies by that. The way back passes rounding over ("straight
through", as Quanto's own layers do before they are frozen): the weight gets the gradient of the
values that were multiplied by.
"""

from __future__ import annotations

from typing import Any

import torch
from optimum.quanto import qtypes

from ...shapes import Layer
from ...weights import weights_of
from . import cures
from .bytes import group_size
from .products import multiplied_by, plain_values
from .quantizing import quantized_weight


class TrainableLinear(torch.nn.Linear):
    """A Linear layer with weights in full precision that computes with quantized ones.

    Its parameters and its state dict are those of the layer that it came from, the very objects,
    so that an optimizer and checkpoints of the unquantized model fit.
    """

    def __init__(self, layer: Layer, word: str) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias, device="meta")
        self.word, self.path = word, layer.path

    def reset_parameters(self) -> None:
        """Do nothing: the parameters are put in."""

    def extra_repr(self) -> str:
        """Return the shape and the word."""
        return f"{super().extra_repr()}, weights={self.word}, trainable"

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``input @ weight.T + bias`` by the quantized weight.

        Parameters
        ----------
        input : torch.Tensor
            Of shape (..., in_features).

        Raises
        ------
        BrokenModelError
            If the weight holds NaN or infinity, as it does once a training has diverged.
        """
        x, weight, bias = input, self.weight, self.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # as nn.Linear does
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return _StraightThrough.apply(x.contiguous(), weight, bias, self)

    def quantized(self, weight: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return the weight as freezing makes it, and whether it is multiplied by plainly."""
        layer = Layer(self.path, self.in_features, self.out_features, self.bias is not None)
        cure = cures.cure_for(layer, self.word, weight.dtype, weight.device.type)
        packed, _ = quantized_weight(
            weight.detach(),
            qtypes[weights_of(self.word).name],
            group_size(self.in_features) if weights_of(self.word).grouped else None,
            weight.dtype,
            for_kernel=cure != cures.INT4_GENERIC,
            name=self.path,
        )
        return packed, cure == cures.INT8_PLAIN


class _StraightThrough(torch.autograd.Function):
    """The product by a weight quantized on the way; rounding has the gradient 1."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer: TrainableLinear,
    ) -> torch.Tensor:
        """Return the product for x of shape (..., in_features)."""
        packed, plainly = layer.quantized(weight)
        ctx.save_for_backward(x)
        ctx.packed = packed  # a fraction of the weight's bytes
        return multiplied_by(x, packed, bias, plainly)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        (x,), (gradient,) = ctx.saved_tensors, gradients
        of_x = of_weight = of_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            of_x = (rows @ plain_values(ctx.packed)).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            of_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias, None


def trainable_linear(layer: Layer, word: str, linear: torch.nn.Linear) -> TrainableLinear:
    """Return a layer that computes by a word and is trained, with the parameters of another.

    Parameters
    ----------
    layer, word : Layer, str
        Its shape and path, and one of Quanto's words.
    linear : torch.nn.Linear
        Whose parameters it takes; they ask for gradients from now on.
    """
    new = TrainableLinear(layer, word)
    new.weight, new.bias = linear.weight, linear.bias
    for parameter in new.parameters():
        parameter.requires_grad_(True)
    return new.train(linear.training)
