"""Quantized weights as files in torchao's form hold them: plain tensors, and notes on them.

A file's header says which of torchao's classes the tensors are parts of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...errors import ArgumentError, BrokenModelError
from ...files.foreign import foreign_method
from ...files.layout import Piece, Spec
from ...shapes import Layer
from ...weights import is_word
from .layers import empty_linear, own_config, part_shapes, set_tensors
from .library import (
    Float8Tensor,
    Int8Tensor,
    TensorSubclassAttributeJSONEncoder,
    config_to_dict,
)

SCALE = None
"""No tensor of a layer tells what it computes in: scales are float32."""

METHOD = "torchao"
"""What configurations call it."""

_PREFIX = "_weight_"


# --- from modules ---------------------------------------------------------------------------


def owns(part: torch.nn.Module) -> bool:
    """Return whether a layer's weight is one of torchao's tensors."""
    return isinstance(part, torch.nn.Linear) and isinstance(
        part._parameters.get("weight"), (Int8Tensor, Float8Tensor)
    )


def word_of(part: torch.nn.Module, path: str = "") -> str:
    """Return the weights word of a layer whose weight is one of torchao's tensors.

    Raises
    ------
    ArgumentError
        If none means its type.
    """
    weight = part.weight
    floating, columns = isinstance(weight, Float8Tensor), weight.shape[-1]
    group = "" if weight.block_size[-1] == columns else f"-g{weight.block_size[-1]}"
    word = f"torchao:{'float8' if floating else 'int8'}{group}"
    kind = torch.float8_e4m3fn if floating else torch.int8
    plain = weight.act_quant_kwargs is None and weight.block_size[0] == 1
    if not plain or weight.qdata.dtype != kind or not is_word(word):
        raise ArgumentError(
            f"layer {path!r} has weights of torchao's {type(weight).__name__} in a form that no "
            "weights word means (activations quantized too, other blocks)"
        )
    return word


def _parts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}


def piece_of(layer: torch.nn.Module, prefix: str, path: str) -> Piece:
    """Return what a file holds of a layer: the parts of its weight, and its bias."""
    tensors = {_PREFIX + name: value for name, value in _parts(layer.weight).items()}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach()
    if any(t.is_meta for t in tensors.values()):
        raise ArgumentError(f"{path!r} lies on the meta device: load the weights before saving")
    specs = tuple(Spec(prefix + name, t.dtype, tuple(t.shape)) for name, t in tensors.items())
    return Piece(specs, lambda: list(tensors.values()))


def header_notes(module: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return what a file's header says beside its tensors: which are parts of what.

    Parameters
    ----------
    module : torch.nn.Module
        Whose layers are quantized.
    names : iterable of str
        Of all tensors of its file.
    """
    notes: dict[str, str] = {}
    plain = json.dumps({"_type": "Tensor"})
    for name in names:
        owner, _, leaf = name.rpartition(".")
        if not leaf.startswith(_PREFIX):
            notes[name] = plain
            continue
        whole = f"{owner}.weight" if owner else "weight"
        if whole not in notes:
            weight = module.get_submodule(owner).weight
            notes[whole] = json.dumps(weight, cls=TensorSubclassAttributeJSONEncoder)
    return {**notes, "tensor_names": json.dumps(list(notes))}


def plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight that a layer stands for."""
    with torch.no_grad():
        return layer.weight.dequantize()


# --- to modules -----------------------------------------------------------------------------


def layers_in(specs: Mapping[str, Spec]) -> tuple[str, ...]:
    """Return the layers of which tensors in torchao's form are there."""
    leaf = _PREFIX + "qdata"
    return tuple(
        name.removesuffix(leaf).removesuffix(".")
        for name in specs
        if name.rpartition(".")[2] == leaf
    )


def declared(said: Mapping[str, Any], paths: Iterable[str]) -> dict[str, str]:
    """Return what a ``quantization_config`` of torchao says of some layers.

    Raises
    ------
    BrokenModelError
        If no weights word means it.
    """
    paths = tuple(paths)
    kind = said.get("quant_type")
    kind = kind.get("default") if isinstance(kind, dict) else None
    known = {_key(own_config(word)): word for word in ("torchao:int8", "torchao:float8")}
    found = {}
    for path in paths:
        own = kind
        if isinstance(kind, dict) and kind.get("_type") == "FqnToConfig":
            data = kind.get("_data") if isinstance(kind.get("_data"), dict) else {}
            by_name = data.get("fqn_to_config")
            by_name = by_name if isinstance(by_name, dict) else {}
            own = by_name.get(f"{path}.weight", by_name.get(path, by_name.get("_default")))
        word = known.get(_key(own)) or _grouped(own)
        if word is None:
            raise foreign_method(f"layer {path!r}", METHOD)
        found[path] = word
    return found


def _key(config: Any) -> str:
    """Return a configuration as text, without inductor's settings."""
    values = config if isinstance(config, dict) or config is None else config_to_dict(config)
    if isinstance(values, dict) and isinstance(values.get("_data"), dict):
        data = {k: v for k, v in values["_data"].items() if k != "set_inductor_config"}
        values = {**values, "_data": data}
    return json.dumps(values, sort_keys=True)


def _grouped(config: Any) -> str | None:
    try:
        size = config["_data"]["granularity"]["_data"]["group_size"]
    except (KeyError, TypeError):
        return None
    word = f"torchao:int8-g{size}"
    return word if is_word(word) and _key(own_config(word)) == _key(config) else None


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
    layer = Layer("", part.in_features, part.out_features, part.bias is not None)
    shapes = {_PREFIX + n: shape for n, shape in part_shapes(layer, word_of(part)).items()}
    if part.bias is not None:
        shapes["bias"] = (part.bias.dtype, tuple(part.bias.shape))
    return {prefix + n: Spec(prefix + n, kind, shape) for n, (kind, shape) in shapes.items()}


def weight_names(part: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors that a waiting layer's weight is made of."""
    return tuple(_PREFIX + name for name in _parts(part.weight))


def kept_dtype(name: str) -> bool:
    """Return whether a tensor of a layer's weight stays as it is, whatever is computed in."""
    return True


def fill_weight(
    part: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    layer: Layer | None,
    recorded: frozenset[str],
    own: bool,
) -> tuple[str, ...]:
    """Put a weight's tensors into a waiting layer; arguments as for every backend."""
    parts = {
        name.removeprefix(_PREFIX): value.clone() if own else value
        for name, value in tensors.items()
    }
    set_tensors(part, word_of(part), parts, None, part.weight.dtype)
    return ()
