"""What quantizing some layers of a component changes in its output, in a child process.

The component runs unquantized on inputs that a real picture gave it. Then, again and again, some
of its layers are replaced by quantized ones, it runs on the same inputs, and the layers are put
back.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..backends.quanto.quantize import put_module, quantize_linear, resolve_layers
from ..errors import UnsupportedError
from ..measure.conditions import describe_conditions
from ..models.layers import Layer, linear_layers
from ..models.skeleton import build_skeleton
from ..models.source import find_model
from ..recipes import REFERENCE, Recipe
from . import workload

Inputs = list[tuple[tuple, dict]]
"""Arguments of calls of a component's forward."""


_FLOOR_LAYERS = 8  # so many layers, spread over the component, tell what rounding does


class _Enough(Exception):
    """Raised inside a pipeline once the inputs that were wanted have been seen."""


def list_layers(request: dict, emit: Callable[[dict], None]) -> list[list[dict]]:
    """Return the layers that each recipe quantizes in a component, from shapes alone.

    Parameters
    ----------
    request : dict
        ``model``, ``component``, ``dtype`` and ``recipes``.
    emit : callable
        Takes progress events.
    """
    part = find_model(request["model"], weights=False).component(request["component"])
    module = build_skeleton(part)
    layers = linear_layers(module)
    recipes = (Recipe.from_dict(r) for r in request["recipes"])
    plans = (resolve_layers(module, layers, r, part.name, request["dtype"]) for r in recipes)
    return [[asdict(layer) for layer in plan.quantized] for plan in plans]


def measure_sets(request: dict, emit: Callable[[dict], None]) -> dict:
    """Return the errors that quantizing each set of layers causes, by itself.

    Parameters
    ----------
    request : dict
        As for a trial, with ``component``; ``sets``, each with ``weights`` and ``paths``;
        ``inputs``, how many of the component's calls to look at; ``results``, a file to which
        each result is added as a line of JSON as soon as it is there, or None.
    emit : callable
        Takes progress events; a ``picture`` for each set.
    """
    emit({"event": "stage", "stage": "loading"})
    name, device = request["component"], request["device"]
    reference = Recipe(REFERENCE, (), (name,)).to_dict()
    prepared = workload.prepare(
        {**request, "recipe": reference, "components": [name], "compiled": False}
    )
    module = getattr(prepared.pipe, name)
    emit({"event": "stage", "stage": "capturing inputs"})
    inputs = _captured(module, prepared, request, emit)
    outputs = [_first_output(module, call) for call in inputs]
    layers = {layer.path: layer for layer in linear_layers(module)}
    floor = _floor(module, list(layers.values()), inputs, outputs)
    results = []
    emit({"event": "stage", "stage": "quantizing layer by layer"})
    for entry in request["sets"]:
        chosen = [layers[path] for path in entry["paths"]]
        result = _errors(module, chosen, entry["weights"], inputs, outputs)
        results.append(result)
        if request["results"]:
            with Path(request["results"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, **result}) + "\n")
        emit({"event": "picture"})
    return {
        "results": results,
        "inputs": len(inputs),
        "output_floor": floor,
        "conditions": describe_conditions(device, None),
    }


def _captured(module: torch.nn.Module, prepared, request: dict, emit) -> Inputs:
    """Return arguments of the component's forward, spread over the first picture's calls.

    Of a denoiser's calls those in the middle of equal parts are taken (with two, a quarter and
    three quarters of the way); of a text encoder's the first.
    """
    wanted, steps = request["inputs"], request["steps"]
    is_encoder = request["component"].startswith("text_encoder")
    numbers = {0} if is_encoder else {int((i + 0.5) * steps / wanted) for i in range(wanted)}
    seen: Inputs = []
    count = 0

    def look(module, args, kwargs) -> None:
        nonlocal count
        if count in numbers:
            seen.append((_copied(args), _copied(kwargs)))
            if len(seen) == len(numbers):
                raise _Enough
        count += 1

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    prompt, seed = request["pairs"][0]
    try:
        if is_encoder:
            workload.encode_with(prepared.pipe, [prompt], request["device"])
        if not seen:
            workload.Studio(prepared, request, emit).make(prompt, seed)
    except _Enough:
        pass
    finally:
        handle.remove()
    if not seen:
        raise UnsupportedError(f"{request['component']} is not called while a picture is made")
    return seen


def _copied(value: Any) -> Any:
    """Return arguments whose tensors no later step overwrites."""
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(v) for v in value)
    return value


def _first_output(module: torch.nn.Module, call: tuple[tuple, dict]) -> torch.Tensor:
    with torch.no_grad():
        output = module(*call[0], **call[1])
    return (output if torch.is_tensor(output) else output[0]).float()


def _floor(module: torch.nn.Module, layers: list[Layer], inputs: Inputs, outputs: list) -> float:
    """Return the output error that rounding alone makes: one layer's sums in another order.

    The median over some layers. What quantizing a layer changes can't be told from rounding
    below it; in bfloat16 that is much, since later layers amplify what differs in the last bit.
    """
    step = max(1, len(layers) // _FLOOR_LAYERS)
    found = []
    for layer in layers[::step]:
        linear = module.get_submodule(layer.path)
        put_module(module, layer.path, _reordered(linear))
        try:
            found.append(_output_error(module, inputs, outputs))
        finally:
            put_module(module, layer.path, linear)
    return statistics.median(found)


def _reordered(linear: torch.nn.Linear) -> torch.nn.Linear:
    """Return a layer that adds the same products in another order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(linear.in_features, generator=generator).to(linear.weight.device)
    new = torch.nn.Linear(linear.in_features, linear.out_features, device="meta")
    new.weight = torch.nn.Parameter(linear.weight[:, order], requires_grad=False)
    new.bias = linear.bias
    new.register_forward_pre_hook(lambda module, args: (args[0][..., order], *args[1:]))
    return new.eval()


def _errors(
    module: torch.nn.Module, layers: list[Layer], weights: str, inputs: Inputs, outputs: list
) -> dict[str, float]:
    """Return the relative error of some layers' weights, and of the output with them quantized."""
    originals = {layer.path: module.get_submodule(layer.path) for layer in layers}
    squares = norms = 0.0
    try:
        for layer in layers:
            linear = originals[layer.path]
            quantized, _ = quantize_linear(layer, weights, linear.weight, linear.bias)
            put_module(module, layer.path, quantized)
            delta = _plain_weight(quantized).double() - linear.weight.double()
            squares += delta.square().sum().item()
            norms += linear.weight.double().square().sum().item()
        output_error = _output_error(module, inputs, outputs)
    finally:
        for path, linear in originals.items():
            put_module(module, path, linear)
    return {"weight_error": _relative(squares, norms), "output_error": output_error}


def _output_error(module: torch.nn.Module, inputs: Inputs, outputs: list) -> float:
    squares = norms = 0.0
    for call, reference in zip(inputs, outputs, strict=True):
        delta = (_first_output(module, call) - reference).double()
        squares += delta.square().sum().item()
        norms += reference.double().square().sum().item()
    return _relative(squares, norms)


def _plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight that a quantized layer stands for, whatever kernel it is packed for."""
    from ..backends.quanto.generic import weight_specs, weight_values
    from ..backends.quanto.row_wise import weight_of

    weight = layer.weight.data if type(layer.weight) is torch.nn.Parameter else layer.weight
    names = [spec.name for spec in weight_specs(weight, "")]
    parts = dict(zip(names, weight_values(weight), strict=True))
    shape = layer.weight_group_size, weight.size(), weight.stride()
    return weight_of(parts, layer.weight_qtype, *shape).dequantize()


def _relative(squares: float, norms: float) -> float:
    """Return a relative L2 norm; infinite if the output is no number any more."""
    value = math.sqrt(squares / norms) if norms > 0 else math.nan
    return value if math.isfinite(value) else math.inf
