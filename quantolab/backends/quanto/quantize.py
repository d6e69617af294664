"""An nn.Module in memory, quantized in place, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from optimum.quanto import QLinear, QTensor, quantize_weight
from optimum.quanto.tensor import SymmetricOptimizer

from ...errors import ArgumentError, BrokenModelError
from ...models.layers import (
    KEEP_FP32,
    Layer,
    check_patterns,
    kept_in_float32,
    linear_layers,
    match_layers,
)
from ...recipes import Recipe, as_recipe
from . import cures
from .declaring import declare
from .kernels import TinyGemmProduct, TinyGemmWeightQBitsTensor
from .row_wise import quantized_parts, weight_of
from .tensors import weight_bytes
from .tinygemm import optimized

cures.use_no_compiler()

_QTYPES = {word: "q" + word for word in ("float8", "int8", "int4", "int2")}


@dataclass(frozen=True)
class QuantizeReport:
    """What became of each Linear layer of a module."""

    recipe: Recipe
    quantized: tuple[str, ...]
    """Paths of the layers whose weights are quantized."""
    kept: tuple[tuple[str, str], ...]
    """(path, why) of the layers that keep their weights."""
    cures: tuple[tuple[str, str], ...]
    """(path, name of the cure) of layers that would crash or fail in plain Quanto."""
    weight_bytes: int
    """Bytes of the whole module afterwards."""

    def notes(self) -> tuple[str, ...]:
        """Return the report as sentences: cures and kept layers, counted."""
        counts: dict[str, int] = {}
        for _, name in self.cures:
            counts[name] = counts.get(name, 0) + 1
        for _, why in self.kept:
            why = f"kept: {why}"
            counts[why] = counts.get(why, 0) + 1
        return tuple(f"{name} ({n} layers)" for name, n in counts.items())


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
        return torch.nn.functional.linear(x, weight, self.bias)


def is_quantized(module: torch.nn.Module) -> bool:
    """Return whether any layer of a module already has Quanto weights."""
    return any(isinstance(m, QLinear) for m in module.modules())


def quantize(
    module: torch.nn.Module, recipe: Recipe | str
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Quantize the Linear layers of a module that is in memory, and say what became of each.

    Works in place, layer by layer, so that never more than one layer exists twice. Data, scales
    and shifts are, bit for bit, those of Diffusers' ``QuantoConfig``.

    Parameters
    ----------
    module : torch.nn.Module
        Any module in one floating-point dtype; Diffusers and transformers models for example.
    recipe : Recipe or str
        What to quantize to and which layers to keep; its `components` are not looked at.

    Returns
    -------
    module : torch.nn.Module
        The same object (a new one only if the module itself is a Linear layer). Its
        `quantize_report` attribute is the report; a model of Diffusers or transformers says in
        its configuration that it is quantized, as after `load`.
    report : QuantizeReport
        Quantized and kept layers, cures, bytes.

    Raises
    ------
    ArgumentError
        If a skip pattern matches nothing, or the module is quantized already, or its weights
        lie on the meta device; the module is then unchanged.
    BrokenModelError
        If a weight holds NaN or infinity.

    Examples
    --------
    >>> module, report = quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "int8")
    >>> report.quantized
    ('0',)
    """
    recipe = as_recipe(recipe)
    layers = linear_layers(module)
    _check_module(module, layers)
    plan = plan_layers(module, layers, recipe, dtype=_compute_dtype(module))
    if recipe.is_reference:
        return _with_report(module, QuantizeReport(recipe, (), (), (), weight_bytes(module)))
    if not plan.quantized:
        raise ArgumentError(
            f"{type(module).__name__} has {len(layers)} Linear layers and the recipe "
            f"'{recipe}' keeps all of them: nothing to quantize"
        )
    for layer in plan.quantized:  # before anything changes
        check_finite(module.get_submodule(layer.path).weight, layer.path)
    applied = []
    for layer in plan.quantized:
        linear = module.get_submodule(layer.path)
        quantized, names = quantize_linear(
            layer, recipe.weights, linear.weight, linear.bias, linear.training
        )
        linear.weight = None  # give the memory back before the next layer
        applied += [(layer.path, name) for name in names]
        module = put_module(module, layer.path, quantized)
    quantized_paths = tuple(layer.path for layer in plan.quantized)
    kept_paths = [path for path, _ in plan.kept]
    declare(module, dict.fromkeys(quantized_paths, recipe.weights), kept_paths)
    return _with_report(
        module,
        QuantizeReport(recipe, quantized_paths, plan.kept, tuple(applied), weight_bytes(module)),
    )


@dataclass(frozen=True)
class LayerPlan:
    """Which layers a recipe quantizes in a module, resolved to full paths."""

    quantized: tuple[Layer, ...]
    kept: tuple[tuple[str, str], ...]


def plan_layers(
    module: torch.nn.Module,
    layers: tuple[Layer, ...],
    recipe: Recipe,
    component: str = "",
    dtype: str = "bfloat16",
) -> LayerPlan:
    """Return which layers a recipe quantizes and which it keeps, with the reason.

    Raises
    ------
    ArgumentError
        If a skip pattern matches no layer.
    """
    check_patterns(recipe.skip, {component or type(module).__name__: layers})
    return resolve_layers(module, layers, recipe, component, dtype)


def resolve_layers(
    module: torch.nn.Module,
    layers: tuple[Layer, ...],
    recipe: Recipe,
    component: str = "",
    dtype: str = "bfloat16",
) -> LayerPlan:
    """Return the same for one of several components: a pattern may hit another one instead."""
    skipped = match_layers(recipe.skip, layers, component)
    kept, quantized = [], []
    for layer in layers:
        if kept_in_float32(module, layer.path, dtype):
            kept.append((layer.path, KEEP_FP32))
        elif layer.path in skipped:
            kept.append((layer.path, f"skip {skipped[layer.path]!r}"))
        else:
            quantized.append(layer)
    return LayerPlan(() if recipe.is_reference else tuple(quantized), tuple(kept))


def quantize_linear(
    layer: Layer,
    weights: str,
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
    weights : str
        Weights dtype.
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
    quantized = empty_linear(layer, weights, dtype)
    cure = cures.cure_for(layer, weights, dtype, weight.device.type)
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


def empty_linear(layer: Layer, weights: str, dtype: torch.dtype) -> QuantoLinear:
    """Return a layer on the meta device, waiting for its tensors."""
    linear = QuantoLinear(
        layer.in_features,
        layer.out_features,
        layer.bias,
        dtype=dtype,
        device="meta",
        weights=_QTYPES[weights],
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


def put_module(root: torch.nn.Module, path: str, new: torch.nn.Module) -> torch.nn.Module:
    """Put a module at a path and return the root, which is the new module for an empty path."""
    if not path:
        return new
    owner, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(owner), leaf, new)
    return root


def put_tensor(owners: Mapping[str, torch.nn.Module], name: str, value: torch.Tensor) -> None:
    """Put a tensor where a module of ``named_modules()`` waits for it."""
    path, _, leaf = name.rpartition(".")
    owner = owners[path]
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value


def check_finite(weight: torch.Tensor, path: str) -> None:
    """Raise `BrokenModelError` if a weight holds NaN or infinity, which no dtype can store."""
    low, high = torch.aminmax(weight.detach())  # both carry NaN and infinity
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise BrokenModelError(f"the weight of layer {path!r} holds NaN or infinity")


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


def _with_report(
    module: torch.nn.Module, report: QuantizeReport
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Return both, the report also as an attribute: `save` records what it says."""
    module.quantize_report = report
    return module, report


def _compute_dtype(module: torch.nn.Module) -> str:
    """Return the name of the narrowest floating dtype: a few layers may be kept wider."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return str(min(dtypes, key=lambda d: (d.itemsize, str(d)))).removeprefix("torch.")


def _check_module(module: torch.nn.Module, layers: tuple[Layer, ...]) -> None:
    name = type(module).__name__
    if is_quantized(module):
        raise ArgumentError(f"{name} is quantized already; load it anew to quantize it otherwise")
    if not layers:
        raise ArgumentError(f"{name} has no Linear layer, so there is nothing to quantize")
    if any(p.device.type == "meta" for p in module.parameters()):
        raise ArgumentError(f"the weights of {name} lie on the meta device: load them first")
