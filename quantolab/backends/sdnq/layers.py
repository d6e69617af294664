"""A Linear layer in SDNQ's form: quantized from a weight, or waiting for its tensors."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import BrokenModelError
from ...shapes import Layer
from .. import pickles, t5
from ..rows import by_rows
from .library import (
    SDNQConfig,
    SDNQLayer,
    prepare_svd_for_matmul,
    sdnq_quantize_layer,
    sdnq_quantize_layer_weight,
)
from .settings import NO_SKIPS, settings

_SVD_SEED = 0


def empty_linear(layer: Layer, word: str, dtype: torch.dtype) -> SDNQLayer:
    """Return a layer on the meta device, waiting for its tensors."""
    t5.cure(layer.path)
    pickles.cure(word)
    plain = torch.nn.Linear(
        layer.in_features, layer.out_features, layer.bias, dtype=dtype, device="meta"
    )
    plain.requires_grad_(False)
    config = SDNQConfig(**settings(word), **NO_SKIPS)
    with _seeded():
        linear, _ = sdnq_quantize_layer(plain, config, torch_dtype=dtype, param_name="weight")
    linear.quantolab_word = word
    return linear


def quantize_linear(
    layer: Layer,
    word: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    training: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Return one layer quantized, and the names of the cures that it needed.

    Arguments as for every backend's ``layers.quantize_linear``.

    Raises
    ------
    BrokenModelError
        If the weight holds NaN or infinity.
    """
    dtype = dtype or weight.dtype
    linear = empty_linear(layer, word, dtype)
    options = _own_options(word)

    def quantized(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        made = sdnq_quantize_layer_weight(rows.to(dtype), torch_dtype=dtype, **options)[1]
        return {name: value for name, value in made.items() if value is not None}

    weight = weight.detach()
    with torch.no_grad(), _seeded():
        # An SVD is of the whole matrix.
        whole = bool(options["use_svd"])
        tensors = quantized(weight) if whole else by_rows(weight, quantized)
    if not torch.isfinite(tensors["scale"]).all():
        raise BrokenModelError(f"the weight of layer {layer.path!r} holds NaN or infinity")
    set_tensors(linear, tensors, bias)
    return linear.train(training), ()


def set_tensors(
    linear: SDNQLayer, tensors: dict[str, torch.Tensor], bias: torch.Tensor | None
) -> None:
    """Put a quantized weight's tensors and a bias into a waiting layer."""
    if "svd_up" in tensors:
        both = prepare_svd_for_matmul(tensors["svd_up"], tensors["svd_down"], False)
        tensors = tensors | dict(zip(("svd_up", "svd_down"), both, strict=True))
    for name, value in tensors.items():
        linear._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)


def kernel_of(linear: torch.nn.Module) -> str:
    """Return what multiplies by a layer's weight, in words."""
    return "dequantize, then matmul"


def _own_options(word: str) -> dict[str, Any]:
    return {"layer_class_name": "Linear", **settings(word)}


class _seeded:
    """An SVD starts from random numbers: here from the same ones each time."""

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=[])
        self._fork.__enter__()
        torch.manual_seed(_SVD_SEED)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)
