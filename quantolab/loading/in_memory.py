"""An nn.Module in memory, quantized in place, one layer at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..arguments import public
from ..backends import (
    check_installed,
    check_supported,
    check_trainable,
    door,
    is_quantized,
    trainable_layers,
    trainable_linear,
)
from ..errors import ArgumentError, BrokenModelError, UnsupportedError, one_of
from ..files.foreign import WRITTEN_HERE, check_classes, foreign_method, method_in
from ..measure.held_bytes import weight_bytes
from ..models.layers import linear_layers
from ..models.resolving import (
    Resolved,
    Share,
    check_recipe,
    reference_share,
    resolve,
    share_of_module,
    shares_of,
)
from ..models.source import DENOISERS
from ..recipes import Recipe, as_recipe
from .placing import put_module
from .report import QuantizeReport, finish, joined, put_report

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

IN_TRAINING = "weights in full precision, computing as if quantized: freeze makes them final"


@public
def quantize(
    module: torch.nn.Module | DiffusionPipeline,
    recipe: Recipe | str,
    trainable: bool = False,
    *,
    component: str | None = None,
) -> tuple[torch.nn.Module | DiffusionPipeline, QuantizeReport]:
    """Quantize the Linear layers of a module that is in memory, and say what became of each.

    Works in place, layer by layer, so that never more than one layer exists twice. Data, scales
    and shifts are, bit for bit, those of Diffusers' ``QuantoConfig``.

    Parameters
    ----------
    module : torch.nn.Module or DiffusionPipeline
        Any module in one floating-point dtype; Diffusers and transformers models for example. Of a
        pipeline, the components that the recipe names, by default the denoiser.
    recipe : Recipe or str
        What to quantize to and which layers to keep.
    trainable : bool
        Whether the weights stay as they are, to be trained, while the layers compute with them
        quantized (quantization-aware training); `freeze` makes them final. They ask for
        gradients then, which pass rounding over ("straight through").
    component : str, optional
        Which of the recipe's components the module is, where it has other words for others.

    Returns
    -------
    module : torch.nn.Module or DiffusionPipeline
        The same object (a new one only if the module itself is a Linear layer). Its
        `quantize_report` attribute is the report; a model of Diffusers or transformers says in
        its configuration that it is quantized, as after `load`.
    report : QuantizeReport
        Quantized and kept layers, cures, bytes; paths of a pipeline begin with the component.

    Raises
    ------
    ArgumentError
        If a skip pattern matches nothing, or the module is quantized already, or its weights
        lie on the meta device; the module is then unchanged.
    BrokenModelError
        If a weight holds NaN or infinity.
    UnsupportedError
        If a layer can't have its word, or can't be trained so: other backends' can't.

    Examples
    --------
    >>> module, report = quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "int8")
    >>> report.quantized
    ('0',)
    """
    recipe = as_recipe(recipe)
    check_installed(recipe.words)
    if trainable and recipe.is_reference:
        raise ArgumentError(f"the recipe '{recipe}' quantizes nothing that could be trained so")
    if trainable and recipe.activations is not None:
        raise UnsupportedError(
            f"the recipe '{recipe}' quantizes activations, which are calibrated on final weights: "
            "weights alone can be trained so"
        )
    if not isinstance(module, torch.nn.Module):
        return module, _quantize_parts(module, recipe, trainable)
    return _quantize_module(module, share_of_module(recipe, component), trainable)


def _quantize_parts(pipe: DiffusionPipeline, recipe: Recipe, trainable: bool) -> QuantizeReport:
    """Quantize the components of a pipeline that a recipe means; nothing if one of them can't."""
    parts = {n: p for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}
    denoisers = tuple(name for name in parts if name in DENOISERS)
    own = recipe.components if isinstance(recipe.weights, str) else tuple(recipe.weights)
    for name in own:
        one_of("component", name, parts)
    if not denoisers and not any(term.name in parts for term in recipe.terms):
        raise ArgumentError(
            f"{type(pipe).__name__} has no {' or '.join(DENOISERS)}: name what to quantize by "
            f"Recipe(components=...); it has {', '.join(parts)}"
        )
    shares = shares_of(recipe, parts, denoisers) or {n: reference_share(n) for n in denoisers}
    for name in shares:
        _check_module(parts[name])
    found = {
        name: (share, resolve(parts[name], share, dtype=_compute_dtype(parts[name]), strict=False))
        for name, share in shares.items()
    }
    check_recipe(recipe, found)
    reports = {}
    for name, share in shares.items():
        part, reports[name] = _quantize_module(parts[name], share, trainable, strict=False)
        setattr(pipe, name, part)
    return joined(pipe, recipe, reports)


def _quantize_module(
    module: torch.nn.Module, share: Share, trainable: bool = False, *, strict: bool = True
) -> tuple[torch.nn.Module, QuantizeReport]:
    _check_module(module)
    resolved = resolve(module, share, dtype=_compute_dtype(module), strict=strict)
    if share.is_reference:
        report = QuantizeReport(share.recipe, (), (), (), weight_bytes(module))
        module.quantize_report = report
        return module, report
    if trainable:
        return _train_resolved(module, share.recipe, resolved)
    return quantize_resolved(module, share.recipe, resolved)


def quantize_resolved(
    module: torch.nn.Module, recipe: Recipe, resolved: Resolved, device: str | None = None
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Quantize the layers of a module in place, each to the word that was resolved for it.

    With a device each goes there by itself, so that it never holds the module unquantized, and
    all else follows.

    Raises
    ------
    ArgumentError
        If that is none of them.
    BrokenModelError
        If a weight holds NaN or infinity; the module is then unchanged.
    """
    _check_resolved(module, recipe, resolved)
    applied = []
    for choice in resolved.quantized:
        path = choice.layer.path
        linear = module.get_submodule(path)
        if device is not None:
            linear.to(device)
        quantized, cures = door(choice.word, "layers").quantize_linear(
            choice.layer, choice.word, linear.weight, linear.bias, linear.training
        )
        linear.weight = None  # give the memory back before the next layer
        applied += [(path, cure) for cure in cures]
        module = put_module(module, path, quantized)
    if device is not None:
        module.to(device)
    return module, finish(module, recipe, resolved, applied)


def _train_resolved(
    module: torch.nn.Module, recipe: Recipe, resolved: Resolved
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Have the layers of a module compute by their words while they are trained."""
    _check_resolved(module, recipe, resolved)
    check_trainable((c.layer, c.word) for c in resolved.quantized)
    if not resolved.quantized[0].layer.path:
        raise ArgumentError(
            f"a {type(module).__name__} by itself can't be trained so, for nothing holds it in "
            "whose place a quantized one could be put: put it into a torch.nn.Sequential"
        )
    for choice in resolved.quantized:
        linear = module.get_submodule(choice.layer.path)
        new = trainable_linear(choice.layer, choice.word, linear)
        module = put_module(module, choice.layer.path, new)
    return module, put_report(module, recipe, resolved.words, resolved.kept, said=(IN_TRAINING,))


def _check_resolved(module: torch.nn.Module, recipe: Recipe, resolved: Resolved) -> None:
    """Raise if a recipe can't be applied to a module, before anything changes."""
    if not resolved.quantized:
        raise ArgumentError(
            f"{type(module).__name__} has {len(resolved.layers)} Linear layers and the recipe "
            f"'{recipe}' keeps all of them: nothing to quantize"
        )
    dtype, device = _compute_dtype(module), _device(module)
    check_supported(((c.layer, c.word) for c in resolved.quantized), dtype, device)
    for choice in resolved.quantized:
        check_finite(module.get_submodule(choice.layer.path).weight, choice.layer.path)


def _device(module: torch.nn.Module) -> str:
    return next((p.device.type for p in module.parameters()), "cpu")


def _compute_dtype(module: torch.nn.Module) -> str:
    """Return the name of the narrowest floating dtype: a few layers may be kept wider."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return str(min(dtypes, key=lambda d: (d.itemsize, str(d)))).removeprefix("torch.")


def check_finite(weight: torch.Tensor, path: str) -> None:
    """Raise `BrokenModelError` if a weight holds NaN or infinity, which no dtype can store."""
    low, high = torch.aminmax(weight.detach())  # both carry NaN and infinity
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise BrokenModelError(f"the weight of layer {path!r} holds NaN or infinity")


def _check_foreign(module: torch.nn.Module) -> None:
    """Refuse a model that another library has quantized, or whose weights are stored small."""
    name = type(module).__name__
    held = {path or name: type(part) for path, part in module.named_modules()}
    check_classes(name, held | {path: type(part) for path, part in module.named_parameters()})
    config = getattr(module, "config", None)
    said = getattr(config, "quantization_config", None)
    method = method_in(name, {"quantization_config": said})
    if method is not None and method not in WRITTEN_HERE:
        raise foreign_method(name, method)
    for layer in linear_layers(module):
        dtype = module.get_submodule(layer.path).weight.dtype
        if not dtype.is_floating_point or dtype.itemsize < 2:
            raise BrokenModelError(
                f"{name} can't be quantized: the weight of layer {layer.path!r} is {dtype} (as "
                "layerwise casting and foreign quantization leave it); weights in bfloat16, "
                "float16 or float32 are needed, so load the model anew"
            )


def _check_module(module: torch.nn.Module) -> None:
    name = type(module).__name__
    if trainable_layers(module):
        raise ArgumentError(
            f"{name} is in training already: freeze it, or load it anew to quantize it otherwise"
        )
    if is_quantized(module):
        raise ArgumentError(f"{name} is quantized already; load it anew to quantize it otherwise")
    _check_foreign(module)
    if not linear_layers(module):
        raise ArgumentError(f"{name} has no Linear layer, so there is nothing to quantize")
    if any(p.device.type == "meta" for p in module.parameters()):
        raise ArgumentError(f"the weights of {name} lie on the meta device: load them first")
