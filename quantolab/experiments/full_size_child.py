"""One denoiser of true size with random weights: bytes, and seconds a step, eager and compiled.

Bytes and seconds of a step do not depend on what the weights are worth, so nothing is downloaded:
weights are drawn on the device that runs, layer by layer, and quantized at once.
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..devices import resolve_device, synchronize
from ..errors import UnsupportedError, with_kind
from ..files.whole import write_whole
from ..loading.filling import fill_skeleton
from ..measure.conditions import describe_conditions
from ..measure.memory import PeakMemory
from ..measure.other_load import OtherLoad
from ..models.layers import linear_layers
from ..models.sample_inputs import first_output, sample_inputs
from ..models.skeleton import build_skeleton
from ..models.source import Component
from ..planning.predict import predict_weight_bytes
from ..processes.jobs import Desk
from ..run.torch_compile import compile_denoiser, use_own_cache
from .jobs import Kernel, StepJob, Steps, StepsFound

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


def measure_steps(asked: StepJob, desk: Desk) -> StepsFound:
    """Return what one recipe weighs and how long a step takes, eager and, if asked, compiled."""
    desk.stage("quantizing")
    device, dtype = resolve_device(asked.device), getattr(torch, asked.dtype)
    use_own_cache(desk.folder)
    skeleton = _skeleton(asked, desk)
    started = time.perf_counter()
    with PeakMemory(device) as loading:
        denoiser, report = fill_skeleton(
            skeleton,
            RandomTensors(skeleton, dtype, device),
            asked.recipe,
            "transformer",
            dtype=asked.dtype,
            device=device,
        )
        synchronize(device)
    seconds = time.perf_counter() - started
    inputs = sample_inputs(denoiser, dtype, device, side=asked.side, tokens=asked.tokens)
    if inputs is None:
        raise UnsupportedError(f"no inputs are known for a {asked.cls}")
    runner = _Runner(denoiser, inputs, device, asked.repeats, desk)
    eager, compiled, why = runner.steps("eager"), None, None
    if asked.way:
        try:
            compiled = runner.compiled(asked.way)
        except Exception as error:  # whatever a compiler says belongs into the row
            why = with_kind(error)
    words = dict(zip(report.quantized, report.words, strict=True))
    return StepsFound(
        device=device,
        weight_bytes=report.weight_bytes,
        predicted_weight_bytes=predict_weight_bytes(_skeleton(asked, desk), words, asked.dtype),
        fill_and_quantize_seconds=seconds,
        fill_and_quantize_peak_bytes=loading.bytes,
        weight_classes=_weight_classes(denoiser),
        eager=eager,
        compiled=compiled,
        not_compiled=why,
        conditions=describe_conditions(device, loading.method),
    )


def _skeleton(asked: StepJob, desk: Desk) -> torch.nn.Module:
    folder = desk.folder / "denoiser"
    folder.mkdir(exist_ok=True)
    write_whole(folder / "config.json", json.dumps(asked.config))
    part = Component("transformer", "diffusers", asked.cls, folder)
    return build_skeleton(part, keep_buffers=True, dtype=asked.dtype)


@dataclass(frozen=True)
class _Runner:
    """Runs steps of one denoiser on the same inputs."""

    denoiser: Any
    inputs: dict[str, Any]
    device: str
    repeats: int
    desk: Desk

    def steps(self, name: str) -> Steps:
        """Return seconds of single steps, the highest memory meanwhile, and which kernels ran."""
        self.desk.stage(f"{name}: warming up")
        first, _ = self._timed()
        for _ in range(_WARMUP - 1):
            self._timed()
            self.desk.step()
        self.desk.stage(f"{name}: timing")
        samples = []
        with PeakMemory(self.device) as peak, OtherLoad() as others:
            for _ in range(self.repeats):
                samples.append(self._timed()[0])
                self.desk.step()
        return Steps(
            first,
            tuple(samples),
            peak.bytes,
            peak.reserved,
            others.share,
            self._kernels(),
        )

    def compiled(self, way: str) -> Steps:
        """Return the same for the compiled denoiser, and how far its output is from eager."""
        eager = first_output(self.denoiser, self.inputs).double()
        compile_denoiser(self.denoiser, way)
        steps = self.steps("compiled")
        gap = (first_output(self.denoiser, self.inputs).double() - eager).norm()
        return dataclasses.replace(steps, difference=(gap / eager.norm()).item())

    def _timed(self) -> tuple[float, torch.Tensor]:
        synchronize(self.device)
        started = time.perf_counter()
        with torch.no_grad():
            output = self.denoiser(**self.inputs, return_dict=False)[0]
        synchronize(self.device)
        return time.perf_counter() - started, output

    def _kernels(self) -> tuple[Kernel, ...]:
        """Return the longest-running kernels of one step."""
        from torch.profiler import ProfilerActivity, profile

        kinds = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}
        activity = kinds.get(self.device.partition(":")[0], ProfilerActivity.CPU)
        on_gpu = activity != ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            self._timed()
        rows = profiler.key_averages()
        name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        total = sum(getattr(row, name) for row in rows) or 1
        rows = sorted(rows, key=lambda row: -getattr(row, name))[:_KERNELS]
        return tuple(Kernel(row.key, getattr(row, name) / total, row.count) for row in rows)


def _weight_classes(denoiser) -> dict[str, int]:
    """Return how many Linear layers have which class of weight."""
    layers = linear_layers(denoiser)
    weights = (denoiser.get_submodule(layer.path).weight for layer in layers)
    return dict(Counter(type(getattr(w, "data", w)).__name__ for w in weights))
