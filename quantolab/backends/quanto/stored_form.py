"""Quantized weights in the form that files hold: Quanto's generic one, whatever kernel runs.

Some weights are repacked for a kernel (TinyGemm, AWQ, Marlin). A file holds the generic form of
every weight, so that any machine can read it. Turning one into the other happens layer by layer.
"""

from __future__ import annotations

import torch
from optimum.quanto import QTensor, WeightQBitsTensor, WeightQBytesTensor, qtypes
from optimum.quanto.nn import QConv2d, QModuleMixin
from optimum.quanto.tensor.grouped import grouped_shape
from optimum.quanto.tensor.weights.tinygemm import TinyGemmWeightQBitsTensor

from ...errors import ArgumentError, BrokenModelError, UnsupportedError
from ...files.layout import Piece, Spec
from ...shapes import Layer
from ...weights import weights_of, words_of
from . import cures, writes
from .layers import empty_linear
from .products import plain_values
from .row_wise import weight_of
from .tinygemm import generic_parts, optimized
from .training import TrainableLinear

SCALE = "weight._scale"
"""Name of the tensor in a layer whose dtype is the one that the layer computes in."""

_DATA, _PACKED = "weight._data", "weight._data._data"
_ACTIVATIONS = ("input_scale", "output_scale")
_WORDS = words_of("quanto")
_PACKED_WORDS = tuple(word for word in _WORDS.values() if weights_of(word).is_packed)
_BY_DTYPE = {qtypes[name].dtype: word for name, word in _WORDS.items() if word not in _PACKED_WORDS}


# --- from modules ---------------------------------------------------------------------------


def owns(part: torch.nn.Module) -> bool:
    """Return whether Quanto made a layer, or we with it."""
    if isinstance(part, TrainableLinear):
        return True
    return isinstance(part, QModuleMixin) and part.weight_qtype is not None


def is_trainable(part: torch.nn.Module) -> bool:
    """Return whether a layer computes as if quantized, and isn't yet."""
    return isinstance(part, TrainableLinear)


def word_of(part: torch.nn.Module, path: str = "") -> str:
    """Return the weights word of a layer that Quanto made.

    Raises
    ------
    ArgumentError
        If none means its type.
    """
    if isinstance(part, TrainableLinear):
        return part.word
    name = part.weight_qtype.name
    if name not in _WORDS:
        raise ArgumentError(
            f"layer {path!r} has weights of type {name}; known: {', '.join(_WORDS)}"
        )
    return _WORDS[name]


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


def piece_of(layer: torch.nn.Module, prefix: str, path: str) -> Piece:
    """Return what a file holds of a layer: its weight in the generic form, bias and scales.

    Raises
    ------
    ArgumentError
        If the layer isn't frozen.
    UnsupportedError
        If its activations are quantized.
    """
    if isinstance(layer, TrainableLinear):
        raise ArgumentError(
            f"layer {path!r} is still in training: make its weights final first, by "
            "quantolab.freeze(module)"
        )
    if layer.activation_qtype is not None or getattr(layer, "inputs", None) is not None:
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


def plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight that a layer stands for, whatever kernel it is packed for."""
    if isinstance(layer, TrainableLinear):
        return plain_values(layer.quantized(layer.weight)[0])
    weight = layer.weight.data if type(layer.weight) is torch.nn.Parameter else layer.weight
    names = [spec.name for spec in weight_specs(weight, "")]
    parts = dict(zip(names, weight_values(weight), strict=True))
    shape = layer.weight_group_size, weight.size(), weight.stride()
    return weight_of(parts, layer.weight_qtype, *shape).dequantize()


# --- to modules -----------------------------------------------------------------------------


def words_in(specs: dict[str, Spec]) -> dict[str, tuple[str, ...]]:
    """Return the layers of which tensors in Quanto's form are there, and what each may be.

    The names and types of the tensors tell the word, but for int4 and int2, which look alike.

    Parameters
    ----------
    specs : dict
        Every tensor by its name.

    Raises
    ------
    BrokenModelError
        If a tensor has a type that no word of Quanto's stores.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, spec in specs.items():
        if name == _PACKED or name.endswith("." + _PACKED):
            found[name.removesuffix(_PACKED).removesuffix(".")] = _PACKED_WORDS
        elif name == _DATA or name.endswith("." + _DATA):
            if spec.dtype not in _BY_DTYPE:
                known = " or ".join(sorted(str(k).removeprefix("torch.") for k in _BY_DTYPE)[::-1])
                raise BrokenModelError(
                    f"{name!r} has dtype {spec.dtype}; quantized weights are {known}"
                )
            found[name.removesuffix(_DATA).removesuffix(".")] = (_BY_DTYPE[spec.dtype],)
    return found


def waiting_layer(
    old: torch.nn.Module, layer: Layer | None, path: str, word: str, dtype: torch.dtype
) -> torch.nn.Module:
    """Return a quantized layer on the meta device that waits for its tensors.

    Parameters
    ----------
    old : torch.nn.Module
        The unquantized one whose place it takes.
    layer : Layer or None
        Its shape; None if it isn't Linear.
    path, word, dtype : str, str, torch.dtype
        Where it lies, its weights word, and what it computes in.

    Raises
    ------
    BrokenModelError
        If Quanto quantizes no such module.
    """
    if layer is not None:
        return empty_linear(layer, word, dtype)
    if not isinstance(old, torch.nn.Conv2d):
        raise BrokenModelError(f"quantized weights of {path!r}, which is a {type(old).__name__}")
    new = QConv2d.qcreate(old, weights_of(word).name, device="meta")
    for name in _ACTIVATIONS:  # Quanto makes them float32 here
        setattr(new, name, torch.empty((), dtype=dtype, device="meta"))
    return new


def needed_specs(part: torch.nn.Module, prefix: str) -> dict[str, Spec]:
    """Return the tensors that a waiting layer needs, by their full names."""
    dtype = part.input_scale.dtype
    shapes = _weight_shapes(part)
    if part.bias is not None:
        shapes["bias"] = (dtype, tuple(part.bias.shape))
    shapes |= dict.fromkeys(_ACTIVATIONS, (dtype, ()))
    return {prefix + n: Spec(prefix + n, kind, shape) for n, (kind, shape) in shapes.items()}


def weight_names(part: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors that a waiting layer's weight is made of."""
    return tuple(name for name in _weight_shapes(part))


def fill_weight(
    part: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    layer: Layer | None,
    recorded: frozenset[str],
    own: bool,
) -> tuple[str, ...]:
    """Build a layer's weight as quantizing would have: the kernel's own class where it has one.

    Parameters
    ----------
    part : torch.nn.Module
        The waiting layer.
    tensors : dict
        By their names in `weight_names`.
    layer : Layer or None
        Its shape; None if it isn't Linear.
    recorded : frozenset of str
        Names of the cures that were applied when it was quantized.
    own : bool
        Whether tensors that stay as they are get memory of their own.

    Returns
    -------
    tuple of str
        Names of the cures that its shape asks for here, and of those that it was made with.
    """
    parts = {name.removeprefix("weight."): value for name, value in tensors.items()}
    kind, scale = part.weight_qtype, parts["_scale"]
    shape = part.weight_group_size, part.weight.size(), part.weight.stride()
    cure = None
    if layer is not None:
        cure = cures.cure_for(layer, word_of(part), scale.dtype, scale.device.type)
        part.plain_product = cure == cures.INT8_PLAIN
    weight = as_read = weight_of(parts, kind, *shape)
    if cures.INT4_GENERIC not in (cure, *recorded):
        weight = optimized(weight)
    if weight is as_read and own:
        weight = weight_of({name: t.clone() for name, t in parts.items()}, kind, *shape)
    part._parameters["weight"] = torch.nn.Parameter(writes.own(weight), requires_grad=False)
    made = (cures.FLOAT8_ZERO_ROWS,) if cures.FLOAT8_ZERO_ROWS in recorded else ()
    return (cure, *made) if cure else made


def _weight_shapes(part: torch.nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of a quantized weight's tensors, from the layer's own shape."""
    size, dtype = tuple(part.weight.shape), part.input_scale.dtype
    weights = weights_of(word_of(part))
    if not weights.grouped:
        # Of a single row Quanto makes one scale without any dimension.
        scale = () if size[0] == 1 else (size[0],) + (1,) * (len(size) - 1)
        return {_DATA: (part.weight_qtype.dtype, size), SCALE: (dtype, scale)}
    grouped = size
    if part.weight_group_size is not None:
        grouped = tuple(grouped_shape(size, 0, part.weight_group_size))
    scale = grouped if grouped[0] == 1 else (grouped[0],) + (1,) * (len(grouped) - 1)
    return {
        _PACKED: (torch.uint8, (-(-grouped[0] // weights.per_byte), *grouped[1:])),
        SCALE: (dtype, scale),
        "weight._shift": (dtype, scale),
    }
