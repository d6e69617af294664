"""A Linear layer in Quanto's form: quantized from a weight, or waiting for its tensors."""

from __future__ import annotations

import torch
from optimum.quanto import QLinear, QTensor, quantize_weight
from optimum.quanto.tensor import SymmetricOptimizer

from ...errors import BrokenModelError
from ...shapes import Layer
from ...weights import weights_of
from . import cures
from .kernels import TinyGemmProduct, TinyGemmWeightQBitsTensor
from .plain_product import multiplied
from .row_wise import quantized_parts, weight_of
from .tinygemm import optimized

cures.use_no_compiler()


class QuantoLinear(QLinear):
    """Quanto's QLinear with a forward that neither crashes nor computes garbage.

    Weight, scales and state dict are those of `QLinear`; only how the product is computed is
    decided here (see `cures`).
    """

    plain_product = False
    """Whether to multiply by the dequantized weight instead of calling a kernel."""

    def reset_parameters(self) -> None:
        """Do nothing: a layer is built empty and its tensors are put in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight.T + bias`` for x of shape (..., in_features)."""
        x = x.contiguous()  # cures.CONTIGUOUS
        weight = self.qweight
        if isinstance(weight, TinyGemmWeightQBitsTensor):
            return TinyGemmProduct.apply(x, weight, self.bias)  # cures.TINYGEMM_TRACED
        if self.plain_product and isinstance(weight, QTensor):
            weight = weight.dequantize()
        product = multiplied(x, weight, self.bias)
        if product is not None:
            return product
        return torch.nn.functional.linear(x, weight, self.bias)


def quantize_linear(
    layer: Layer,
    word: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    training: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[QuantoLinear, tuple[str, ...]]:
    """Return one layer quantized, and the names of the cures that it needed.

    Parameters
    ----------
    layer : Layer
        Its shape and path.
    word : str
        Weights word, one of Quanto's.
    weight : torch.Tensor
        Of shape (out_features, in_features), on the device that will run.
    bias : torch.Tensor or None
        Of shape (out_features,); kept as it is.
    training : bool
        Mode that the new layer starts in.
    dtype : torch.dtype, optional
        Compute dtype; by default the weight's own.
    """
    dtype = dtype or weight.dtype
    quantized = empty_linear(layer, word, dtype)
    cure = cures.cure_for(layer, word, dtype, weight.device.type)
    quantized.plain_product = cure == cures.INT8_PLAIN
    with torch.no_grad():
        packed, zero_rows = _quantized_weight(
            quantized, weight.detach(), dtype, for_kernel=cure != cures.INT4_GENERIC
        )
    set_tensors(quantized, packed, bias, dtype)
    names = [cure] if cure else []
    if zero_rows:
        names.append(cures.FLOAT8_ZERO_ROWS)
    return quantized.train(training), tuple(names)


def empty_linear(layer: Layer, word: str, dtype: torch.dtype) -> QuantoLinear:
    """Return a layer on the meta device, waiting for its tensors."""
    linear = QuantoLinear(
        layer.in_features,
        layer.out_features,
        layer.bias,
        dtype=dtype,
        device="meta",
        weights=weights_of(word).name,
    )
    linear.name = layer.path
    return linear


def set_tensors(
    linear: QuantoLinear, packed: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> None:
    """Put a quantized weight and a bias into a waiting layer; activation scales are 1."""
    linear.weight = torch.nn.Parameter(packed, requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    for name in ("input_scale", "output_scale"):
        linear._buffers[name] = torch.ones((), dtype=dtype, device=packed.device)


def _quantized_weight(
    linear: QuantoLinear, weight: torch.Tensor, dtype: torch.dtype, *, for_kernel: bool
) -> tuple[torch.Tensor, bool]:
    """Return Quanto's tensor for a weight, and whether rows of zeros had to be cured."""
    kind, group_size = linear.weight_qtype, linear.weight_group_size
    parts = quantized_parts(weight, kind, group_size, dtype)
    if parts is not None:
        scale = parts["_scale"]
        packed = weight_of(parts, kind, group_size, weight.size(), weight.stride())
        _check_scale(linear, scale)
        if for_kernel:
            packed = optimized(packed)
    else:
        weight = weight.to(dtype)
        if isinstance(linear.optimizer, SymmetricOptimizer):
            scale, shift = linear.optimizer(weight, qtype=kind, axis=0), None
        else:
            scale, shift = linear.optimizer(weight, qtype=kind, axis=0, group_size=group_size)
        _check_scale(linear, scale)
        packed = quantize_weight(
            weight,
            qtype=kind,
            axis=0,
            scale=scale,
            shift=shift,
            group_size=group_size,
            optimized=for_kernel,
        )
    zero_rows = kind.is_floating_point and not bool(scale.all())
    if zero_rows:
        _store_zeros(packed, scale)
    return packed, zero_rows


def _check_scale(linear: QuantoLinear, scale: torch.Tensor) -> None:
    """Scales carry NaN and infinity of any value they were made from."""
    if not torch.isfinite(scale).all():
        raise BrokenModelError(f"the weight of layer {linear.name!r} holds NaN or infinity")


def _store_zeros(packed: torch.Tensor, scale: torch.Tensor) -> None:
    """Overwrite the NaN of all-zero rows; float8 has no masked fill, its bytes have (0 is 0.0)."""
    raw = packed._data.view(torch.uint8)
    raw.masked_fill_((scale == 0).expand_as(raw), 0)
