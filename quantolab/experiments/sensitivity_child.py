"""What quantizing some layers of a component changes in its output, in a child process.

The component runs unquantized on inputs that a real picture gave it. Then, again and again, some
of its layers are replaced by quantized ones, it runs on the same inputs, and the layers are put
back.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from typing import Any

import torch

from ..backends import door
from ..errors import UnsupportedError
from ..loading.placing import put_module
from ..measure.conditions import describe_conditions
from ..models.layers import linear_layers
from ..models.resolving import resolve
from ..models.skeleton import build_skeleton
from ..plain_values import to_dict
from ..processes.jobs import Desk
from ..recipes import Recipe
from ..run.studio import Prepared, Studio, encode_with, prepare
from ..shapes import Layer
from ..weights import REFERENCE
from .jobs import LayersFound, LayersJob, SetError, SetsFound, SetsJob

Inputs = list[tuple[tuple, dict]]
"""Arguments of calls of a component's forward."""


_FLOOR_LAYERS = 8  # so many layers, spread over the component, tell what rounding does


class _Enough(Exception):
    """Raised inside a pipeline once the inputs that were wanted have been seen."""


def list_layers(asked: LayersJob, desk: Desk) -> LayersFound:
    """Return the layers that each recipe quantizes in a component, from shapes alone."""
    part = asked.source.component(asked.component)
    module = build_skeleton(part)
    resolved = (resolve(module, r, part.name, asked.dtype, strict=False) for r in asked.recipes)
    return LayersFound(tuple(tuple(choice.layer for choice in r.quantized) for r in resolved))


def measure_sets(asked: SetsJob, desk: Desk) -> SetsFound:
    """Return the errors that quantizing each set of layers causes, by itself."""
    desk.stage("loading")
    reference = Recipe(REFERENCE, (), (asked.component,))
    prepared = prepare(
        dataclasses.replace(asked.trial, recipe=reference, components=(asked.component,))
    )
    module = getattr(prepared.pipe, asked.component)
    desk.stage("capturing inputs")
    inputs = _captured(module, prepared, asked, desk)
    outputs = [_first_output(module, call) for call in inputs]
    layers = {layer.path: layer for layer in linear_layers(module)}
    floor = _floor(module, list(layers.values()), inputs, outputs)
    results = []
    desk.stage("quantizing layer by layer")
    for entry in asked.sets:
        chosen = [layers[path] for path in entry.paths]
        results.append(_errors(module, chosen, entry.weights, inputs, outputs))
        if asked.results is not None:
            with asked.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**to_dict(entry), **to_dict(results[-1])}) + "\n")
        desk.picture()
    device = asked.trial.workload.device
    return SetsFound(tuple(results), len(inputs), floor, describe_conditions(device, None))


def _captured(module: torch.nn.Module, prepared: Prepared, asked: SetsJob, desk: Desk) -> Inputs:
    """Return arguments of the component's forward, spread over the first picture's calls.

    Of a denoiser's calls those in the middle of equal parts are taken (with two, a quarter and
    three quarters of the way); of a text encoder's the first.
    """
    workload, wanted = asked.trial.workload, asked.inputs
    is_encoder = asked.component.startswith("text_encoder")
    numbers = {int((i + 0.5) * workload.steps / wanted) for i in range(wanted)}
    if is_encoder:
        numbers = {0}
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
    prompt, seed = workload.pairs[0]
    try:
        if is_encoder:
            encode_with(prepared.pipe, [prompt], workload.device)
        if not seen:
            Studio(prepared, workload, desk).make(prompt, seed)
    except _Enough:
        pass
    finally:
        handle.remove()
    if not seen:
        raise UnsupportedError(f"{asked.component} is not called while a picture is made")
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
    module: torch.nn.Module, layers: list[Layer], word: str, inputs: Inputs, outputs: list
) -> SetError:
    """Return the relative error of some layers' weights, and of the output with them quantized."""
    originals = {layer.path: module.get_submodule(layer.path) for layer in layers}
    squares = norms = 0.0
    backend, form = door(word, "layers"), door(word, "stored_form")
    try:
        for layer in layers:
            linear = originals[layer.path]
            quantized, _ = backend.quantize_linear(layer, word, linear.weight, linear.bias)
            put_module(module, layer.path, quantized)
            delta = form.plain_weight(quantized).double() - linear.weight.double()
            squares += delta.square().sum().item()
            norms += linear.weight.double().square().sum().item()
        output_error = _output_error(module, inputs, outputs)
    finally:
        for path, linear in originals.items():
            put_module(module, path, linear)
    return SetError(_relative(squares, norms), output_error)


def _output_error(module: torch.nn.Module, inputs: Inputs, outputs: list) -> float:
    squares = norms = 0.0
    for call, reference in zip(inputs, outputs, strict=True):
        delta = (_first_output(module, call) - reference).double()
        squares += delta.square().sum().item()
        norms += reference.double().square().sum().item()
    return _relative(squares, norms)


def _relative(squares: float, norms: float) -> float:
    """Return a relative L2 norm; infinite if the output is no number any more."""
    value = math.sqrt(squares / norms) if norms > 0 else math.nan
    return value if math.isfinite(value) else math.inf
