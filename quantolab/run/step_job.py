"""One denoiser of true size with random weights: bytes, and seconds a step, eager and compiled.

Bytes and seconds of a step do not depend on what the weights are worth, so nothing is downloaded:
weights are drawn on the device that runs, layer by layer, and quantized at once.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..devices import resolve_device, synchronize
from ..errors import UnsupportedError
from ..measure.conditions import describe_conditions
from ..measure.load import OtherLoad
from ..measure.memory import PeakMemory
from ..models.layers import linear_layers
from ..models.predict import predict_weight_bytes
from ..models.sample_inputs import first_output, sample_inputs
from ..models.skeleton import build_skeleton
from ..models.source import Component
from ..recipes import Recipe
from .compile_job import compile_denoiser, use_own_cache

_WARMUP = 3
_SPREAD = 0.02  # standard deviation of the drawn weights; activations stay finite
_KERNELS = 6  # how many of the longest-running are named


class RandomTensors(Mapping):
    """Tensors of a skeleton by name, drawn when they are asked for, always the same.

    Parameters
    ----------
    skeleton : torch.nn.Module
        Its state dict says names and shapes.
    dtype, device : torch.dtype, str
        What is drawn, and where.
    """

    def __init__(self, skeleton: torch.nn.Module, dtype: torch.dtype, device: str) -> None:
        self._shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
        self._dtype, self._device = dtype, device

    def __getitem__(self, name: str) -> torch.Tensor:
        # Python's own hash is another one in each process.
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        value = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        value.normal_(0.0, _SPREAD, generator=generator)
        return value.add_(1) if ".norm" in name and value.ndim == 1 else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def measure_steps(request: dict, emit: Callable[[dict], None]) -> dict:
    """Return what one recipe weighs and how long a step takes, eager and, if asked, compiled.

    Parameters
    ----------
    request : dict
        ``cls`` and ``config`` of the denoiser, ``recipe``, ``dtype``, ``device``, ``side`` and
        ``tokens`` (see `sample_inputs`), ``repeats``, ``way`` of compiling or None.
    emit : callable
        Takes progress events.
    """
    from ..backends.quanto.reading import fill_skeleton

    emit({"event": "stage", "stage": "quantizing"})
    device, dtype = resolve_device(request["device"]), getattr(torch, request["dtype"])
    request = {**request, "device": device}
    use_own_cache(request)
    recipe = Recipe.from_dict(request["recipe"])
    skeleton = _skeleton(request)
    started = time.perf_counter()
    with PeakMemory(device) as loading:
        denoiser, report = fill_skeleton(
            skeleton,
            RandomTensors(skeleton, dtype, device),
            recipe,
            "transformer",
            dtype=request["dtype"],
            device=device,
        )
        synchronize(device)
    seconds = time.perf_counter() - started
    inputs = sample_inputs(denoiser, dtype, device, side=request["side"], tokens=request["tokens"])
    if inputs is None:
        raise UnsupportedError(f"no inputs are known for a {request['cls']}")
    eager = _steps(denoiser, inputs, request, emit, "eager")
    value = {
        "device": device,
        "weight_bytes": report.weight_bytes,
        "predicted_weight_bytes": _predicted(request, recipe, report),
        "fill_and_quantize_seconds": seconds,
        "fill_and_quantize_peak_bytes": loading.bytes,
        "weight_classes": _weight_classes(denoiser),
        "eager": eager,
        "conditions": describe_conditions(device, loading.method),
    }
    if request["way"]:
        value["compiled"] = _compiled(denoiser, inputs, request, emit)
    return value


def _skeleton(request: dict) -> torch.nn.Module:
    folder = Path(request["folder"]) / "denoiser"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(request["config"]))
    part = Component("transformer", "diffusers", request["cls"], folder)
    return build_skeleton(part, keep_buffers=True)


def _predicted(request: dict, recipe: Recipe, report: Any) -> int:
    skeleton = _skeleton(request)
    kept = {path for path, _ in report.kept}
    return predict_weight_bytes(skeleton, recipe.weights, request["dtype"], kept)


def _steps(denoiser, inputs: dict, request: dict, emit, name: str) -> dict:
    """Return seconds of single steps, the highest memory meanwhile, and which kernels ran."""
    device = request["device"]
    emit({"event": "stage", "stage": f"{name}: warming up"})
    first, output = _timed(denoiser, inputs, device)
    for _ in range(_WARMUP - 1):
        _timed(denoiser, inputs, device)
        emit({"event": "step"})
    emit({"event": "stage", "stage": f"{name}: timing"})
    samples = []
    with PeakMemory(device) as peak, OtherLoad() as others:
        for _ in range(request["repeats"]):
            samples.append(_timed(denoiser, inputs, device)[0])
            emit({"event": "step"})
    return {
        "first_seconds": first,
        "samples": samples,
        "peak_bytes": peak.bytes,
        "reserved_bytes": _reserved(device),
        "other_load": others.share,
        "kernels": _kernels(denoiser, inputs, device),
        "output_norm": output.double().norm().item(),
    }


def _compiled(denoiser, inputs: dict, request: dict, emit) -> dict:
    """Return the same for the compiled denoiser, or why there is none."""
    eager = first_output(denoiser, inputs)
    try:
        compile_denoiser(denoiser, request["way"])
        value = _steps(denoiser, inputs, request, emit, "compiled")
        difference = (first_output(denoiser, inputs).double() - eager.double()).norm()
    except Exception as error:  # whatever a compiler says belongs into the row
        first = (str(error).strip().splitlines() or [""])[0]
        return {"reason": f"{type(error).__name__}: {first}"}
    value["difference"] = (difference / eager.double().norm()).item()
    return value


def _timed(denoiser, inputs: dict, device: str) -> tuple[float, torch.Tensor]:
    synchronize(device)
    started = time.perf_counter()
    with torch.no_grad():
        output = denoiser(**inputs, return_dict=False)[0]
    synchronize(device)
    return time.perf_counter() - started, output


def _reserved(device: str) -> int | None:
    """Return what the allocator has taken from the device at most; None on a CPU."""
    kind = device.split(":")[0]
    return getattr(torch, kind).max_memory_reserved() if kind in ("cuda", "xpu") else None


def _weight_classes(denoiser) -> dict[str, int]:
    """Return how many Linear layers have which class of weight."""
    layers = linear_layers(denoiser)
    weights = (denoiser.get_submodule(layer.path).weight for layer in layers)
    return dict(Counter(type(getattr(w, "data", w)).__name__ for w in weights))


def _kernels(denoiser, inputs: dict, device: str) -> list[tuple[str, float, int]]:
    """Return the longest-running kernels of one step: name, share of the time, calls."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        _timed(denoiser, inputs, device)
    rows = profiler.key_averages()
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(row, name) for row in rows) or 1
    rows = sorted(rows, key=lambda row: -getattr(row, name))[:_KERNELS]
    return [(row.key, getattr(row, name) / total, row.count) for row in rows]
