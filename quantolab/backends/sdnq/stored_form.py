"""Quantized weights as SDNQ's own files hold them: the layer's parameters under their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...errors import ArgumentError, BrokenModelError
from ...files.foreign import foreign_method
from ...files.layout import Piece, Spec
from ...shapes import Layer
from ...weights import is_word, weights_of
from . import bytes as formulae
from .layers import empty_linear, set_tensors
from .library import SDNQLayer

SCALE = None
"""No tensor of a layer tells what it computes in: scales are float32."""

METHOD = "sdnq"
"""What configurations call it."""

_WEIGHT = ("weight", "scale", "zero_point", "svd_up", "svd_down")
_FLOAT32 = ("scale", "zero_point")
_KNOWN = (*_WEIGHT, "bias")


# --- from modules ---------------------------------------------------------------------------


def owns(part: torch.nn.Module) -> bool:
    """Return whether SDNQ made a layer, or we with it."""
    return isinstance(part, SDNQLayer) and hasattr(part, "sdnq_dequantizer")


def word_of(part: torch.nn.Module, path: str = "") -> str:
    """Return the weights word of a layer that SDNQ made.

    Raises
    ------
    ArgumentError
        If none means its type.
    """
    known = getattr(part, "quantolab_word", None)
    if known is not None:
        return str(known)
    own = part.sdnq_dequantizer
    odd = own.use_hadamard or own.use_codebook or own.use_quantized_matmul
    odd = odd or any(t is not None and name not in _KNOWN for name, t in part._parameters.items())
    word = f"sdnq:{own.weights_dtype}"
    layer = Layer(path, part.in_features, part.out_features, part.bias is not None)
    rank = "" if part.svd_up is None else f"-svd{part.svd_up.shape[-1]}"
    groups = part.scale.numel() // part.out_features
    if is_word(word) and formulae.group_size(layer, weights_of(word + rank)) * groups != (
        part.in_features
    ):
        word += "-row" if groups == 1 else f"-g{part.in_features // groups}"
    if odd or not isinstance(part, torch.nn.Linear) or not is_word(word + rank):
        raise ArgumentError(
            f"layer {path!r} has weights of SDNQ's type {own.weights_dtype} in a form that no "
            "weights word means (Hadamard, codebooks, quantized products, other layers)"
        )
    return word + rank


def computes_in(layer: torch.nn.Module) -> torch.dtype:
    """Return what a layer computes in, which none of its tensors tells."""
    dtype: torch.dtype = layer.sdnq_dequantizer.result_dtype
    return dtype


def piece_of(layer: torch.nn.Module, prefix: str, path: str) -> Piece:
    """Return what a file holds of a layer: its own parameters."""
    own = {name: t.detach() for name, t in layer._parameters.items() if t is not None}
    if any(t.is_meta for t in own.values()):
        raise ArgumentError(f"{path!r} lies on the meta device: load the weights before saving")
    specs = tuple(Spec(prefix + name, t.dtype, tuple(t.shape)) for name, t in own.items())
    return Piece(specs, lambda: list(own.values()))


def plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight that a layer stands for."""
    with torch.no_grad():
        plain = layer.sdnq_dequantizer(
            layer.weight,
            layer.scale,
            zero_point=layer.zero_point,
            svd_up=layer.svd_up,
            svd_down=layer.svd_down,
        )
    return plain.clone() if plain.is_inference() else plain


# --- to modules -----------------------------------------------------------------------------


def layers_in(specs: Mapping[str, Spec]) -> tuple[str, ...]:
    """Return the layers of which tensors in SDNQ's form are there."""
    found = []
    for name, spec in specs.items():
        owner, _, leaf = name.rpartition(".")
        weight = specs.get(f"{owner}.weight" if owner else "weight")
        if leaf != "scale" or weight is None or not spec.dtype.is_floating_point:
            continue
        if not weight.dtype.is_floating_point or weight.dtype.itemsize == 1:
            found.append(owner)
    return tuple(found)


def declared(said: Mapping[str, Any], paths: Iterable[str]) -> dict[str, str]:
    """Return what a ``quantization_config`` of SDNQ says of some layers.

    Raises
    ------
    BrokenModelError
        If no weights word means it.
    """
    return {path: _declared(said, path) for path in paths}


def _declared(said: Mapping[str, Any], path: str) -> str:
    own = dict(said)
    others = said.get("modules_quant_config") or {}
    if isinstance(others, dict) and isinstance(others.get(f"{path}.weight"), dict):
        own |= others[f"{path}.weight"]
    by_name = said.get("modules_dtype_dict") or {}
    for name, listed in by_name.items() if isinstance(by_name, dict) else ():
        if isinstance(listed, list) and f"{path}.weight" in listed:
            own["weights_dtype"] = name
    odd = ("use_hadamard", "use_codebook", "use_quantized_matmul", "is_training", "quant_conv")
    group, word = own.get("group_size"), f"sdnq:{own.get('weights_dtype')}"
    if group == -1:
        word += "-row"
    elif group:
        word += f"-g{group}"
    if own.get("use_svd"):
        word += f"-svd{own.get('svd_rank')}"
    if any(own.get(name) for name in odd) or not is_word(word):
        raise foreign_method(f"layer {path!r}", METHOD)
    return word


def waiting_layer(
    old: torch.nn.Module, layer: Layer | None, path: str, word: str, dtype: torch.dtype
) -> torch.nn.Module:
    """Return a quantized layer on the meta device that waits for its tensors.

    Raises
    ------
    BrokenModelError
        If it isn't Linear.
    """
    if layer is None:
        raise BrokenModelError(f"quantized weights of {path!r}, which is a {type(old).__name__}")
    return empty_linear(layer, word, dtype)


def needed_specs(part: torch.nn.Module, prefix: str) -> dict[str, Spec]:
    """Return the tensors that a waiting layer needs, by their full names."""
    own = {name: t for name, t in part._parameters.items() if t is not None}
    return {prefix + n: Spec(prefix + n, t.dtype, tuple(t.shape)) for n, t in own.items()}


def weight_names(part: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors that a waiting layer's weight is made of."""
    return tuple(name for name in _WEIGHT if part._parameters.get(name) is not None)


def kept_dtype(name: str) -> bool:
    """Return whether a tensor of a layer's weight stays as it is, whatever is computed in."""
    return name in _FLOAT32


def fill_weight(
    part: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    layer: Layer | None,
    recorded: frozenset[str],
    own: bool,
) -> tuple[str, ...]:
    """Put a weight's tensors into a waiting layer; arguments as for every backend."""
    if own:
        tensors = {name: value.clone() for name, value in tensors.items()}
    set_tensors(part, tensors, None)
    return ()
