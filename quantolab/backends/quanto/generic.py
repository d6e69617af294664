"""Quantized weights in the form that files hold: Quanto's generic one, whatever kernel runs.

Some weights are repacked for a kernel (TinyGemm, AWQ, Marlin). A file holds the generic form of
every weight, so that any machine can read it. Turning one into the other happens layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from optimum.quanto import QTensor, WeightQBitsTensor, WeightQBytesTensor
from optimum.quanto.nn import QModuleMixin
from optimum.quanto.tensor.weights.tinygemm import TinyGemmWeightQBitsTensor

from ...errors import ArgumentError, UnsupportedError
from .tinygemm import generic_parts


@dataclass(frozen=True)
class Spec:
    """What a file's header says of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """The tensors of one module, their values made only when asked for."""

    specs: tuple[Spec, ...]
    values: Callable[[], list[torch.Tensor]]
    """Returns plain tensors, in the order of `specs`."""


def pieces(module: torch.nn.Module) -> Iterator[Piece]:
    """Yield what a module's file holds, module by module, in the order of its state dict.

    Tensors that share their memory come once, under their first name.

    Raises
    ------
    ArgumentError
        If a layer is quantized but not frozen, or its tensors lie on the meta device.
    UnsupportedError
        If activations are quantized.
    """
    seen: set = set()
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(part, QModuleMixin) and part.weight_qtype is not None:
            piece = _quantized_piece(part, prefix, path)
        else:
            piece = _plain_piece(part, prefix)
        piece = _without_seen(piece, part, prefix, seen)
        if piece.specs:
            yield piece


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Return ``{name: the first name of the same tensor}`` for tensors that modules share."""
    first: dict[int, str] = {}
    tied = {}
    listed = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in listed:
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return tied


def weight_specs(weight: torch.Tensor, prefix: str) -> tuple[Spec, ...]:
    """Return what a file holds of a quantized weight, without converting it."""
    if type(weight) is WeightQBytesTensor or type(weight) is WeightQBitsTensor:
        return tuple(
            Spec(prefix + name, t.dtype, tuple(t.shape)) for name, t in _flat(weight).items()
        )
    if isinstance(weight, WeightQBytesTensor):
        data = Spec(prefix + "_data", weight.qtype.dtype, tuple(weight.shape))
        return (data, Spec(prefix + "_scale", weight.dtype, (weight.shape[0], 1)))
    # Kernels' own int4 classes exist for groups only, and for many rows.
    rows = weight.numel() // weight._group_size
    packed = (-(-rows // (8 // weight.qtype.bits)), weight._group_size)
    return (
        Spec(prefix + "_data._data", torch.uint8, packed),
        Spec(prefix + "_scale", weight.dtype, (rows, 1)),
        Spec(prefix + "_shift", weight.dtype, (rows, 1)),
    )


def weight_values(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors of a quantized weight's generic form, in the order of its specs."""
    if isinstance(weight, TinyGemmWeightQBitsTensor):
        return generic_parts(weight)
    if type(weight) is not WeightQBytesTensor and isinstance(weight, WeightQBytesTensor):
        weight = weight.weight_qbytes_tensor()
    if type(weight) is not WeightQBitsTensor and isinstance(weight, WeightQBitsTensor):
        weight = weight.weight_qbits_tensor()
    return list(_flat(weight).values())


def _flat(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the inner tensors of a generic weight under the names that Quanto's files use."""
    if isinstance(weight, WeightQBytesTensor):
        return {"_data": weight._data, "_scale": weight._scale}
    return {"_data._data": weight._data._data, "_scale": weight._scale, "_shift": weight._shift}


def _quantized_piece(layer: torch.nn.Module, prefix: str, path: str) -> Piece:
    if layer.activation_qtype is not None:
        raise UnsupportedError(
            f"layer {path!r} quantizes its activations too; only weights can be saved"
        )
    if not isinstance(layer.weight, QTensor):
        raise ArgumentError(
            f"layer {path!r} is a Quanto layer that isn't frozen yet: call optimum.quanto.freeze "
            "on the module before saving it"
        )
    weight = layer.weight.data if type(layer.weight) is torch.nn.Parameter else layer.weight
    rest = {}
    if layer.bias is not None:
        rest["bias"] = layer.bias.detach()
    rest["input_scale"], rest["output_scale"] = layer.input_scale, layer.output_scale
    specs = weight_specs(weight, prefix + "weight.")
    specs += tuple(Spec(prefix + n, t.dtype, tuple(t.shape)) for n, t in rest.items())
    return Piece(specs, lambda: [*weight_values(weight), *rest.values()])


def _plain_piece(part: torch.nn.Module, prefix: str) -> Piece:
    tensors: dict = {}
    part._save_to_state_dict(tensors, prefix, keep_vars=False)
    tensors = {n: t for n, t in tensors.items() if isinstance(t, torch.Tensor)}
    specs = tuple(Spec(n, t.dtype, tuple(t.shape)) for n, t in tensors.items())
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise ArgumentError(f"{name!r} lies on the meta device: load the weights before saving")
    return Piece(specs, lambda: list(tensors.values()))


def _without_seen(piece: Piece, part: torch.nn.Module, prefix: str, seen: set) -> Piece:
    """Return the piece without tensors that an earlier module shares with this one."""
    shared = set()
    own = {**part._parameters, **part._buffers}
    for leaf, tensor in own.items():
        if tensor is None or not tensor.numel():
            continue
        if id(tensor) in seen:
            shared.add(prefix + leaf)
        seen.add(id(tensor))
    if not shared:
        return piece
    keep = [
        i
        for i, spec in enumerate(piece.specs)
        if not any(spec.name == name or spec.name.startswith(name + ".") for name in shared)
    ]
    return Piece(
        tuple(piece.specs[i] for i in keep),
        lambda: [value for i, value in enumerate(piece.values()) if i in keep],
    )
