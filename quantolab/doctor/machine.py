"""What a child process finds out about the machine: devices, extensions, speed of each dtype."""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..backends.quanto.as_shipped import extension_states, never_build
from ..backends.quanto.kernels import kernel_of
from ..devices import device_name, resolve_device, synchronize
from ..errors import UnsupportedError, with_kind
from ..loading.in_memory import quantize
from ..measure.conditions import describe_conditions
from ..measure.ratios import paired_ratio, verdict_words
from ..planning.plan import recipe_needs
from ..processes.jobs import Desk
from ..recipes import COMPUTE_DTYPES
from ..records import Timing
from ..weights import REFERENCE, WORDS
from .constants import ROUNDS, ROWS, WIDTH
from .jobs import (
    CardFacts,
    CardJob,
    Device,
    ExamineJob,
    Extension,
    Hub,
    Machine,
    Speed,
)

_WITH_MEMORY = ("cuda", "xpu")  # kinds of device that have one of their own

_DRIVER_SECONDS = 10.0  # a driver that is asked for its version must have said it by then

_SAMPLE_SECONDS = 2e-3  # one sample lasts at least so long: shorter calls are repeated in it


def examine(asked: ExamineJob, desk: Desk) -> Machine:
    """Return devices, memory, extensions, Hub cache and measured speeds."""
    device = resolve_device(asked.device)
    extensions = tuple(
        Extension(s.name, s.built, None if s.lock is None else str(s.lock), str(s.folder))
        for s in extension_states()
    )
    never_build()  # an answer is due in seconds
    return Machine(
        device=device,
        devices=devices(),
        threads=torch.get_num_threads(),
        busy=busy(),
        imports=broken_imports(),
        extensions=extensions,
        hub=hub(),
        speeds=tuple(row for dtype in COMPUTE_DTYPES for row in speeds(device, dtype)),
    )


def look_at_card(asked: CardJob, desk: Desk) -> CardFacts:
    """Return what an accelerator is, and what recipes take of it by the plan.

    Raises
    ------
    UnsupportedError
        If there is none that has a memory of its own.
    """
    device = resolve_device(asked.device)
    kind, _, index = device.partition(":")
    if kind not in _WITH_MEMORY:
        raise UnsupportedError(
            f"--card needs an accelerator with a memory of its own (cuda, xpu), and torch "
            f"{torch.__version__} finds none here, only {device}"
        )
    library = getattr(torch, kind)
    free, total = library.mem_get_info(device)
    conditions = describe_conditions(device, None)
    return CardFacts(
        device=device,
        name=conditions.device_name,
        memory_bytes=total,
        free_bytes=free,
        capability=_capability(kind, int(index or library.current_device())),
        runtime=_runtime(kind),
        driver=_driver(kind, device),
        torch=conditions.torch,
        diffusers=conditions.diffusers,
        transformers=conditions.transformers,
        quanto=conditions.quanto,
        needs=recipe_needs(asked.source, asked.recipes, asked.size, asked.dtype),
    )


def devices() -> tuple[Device, ...]:
    """Return each device: its name, memory in bytes, and what decides which kernels it has."""
    import psutil

    memory = psutil.virtual_memory()
    detail = torch.backends.cpu.get_cpu_capability()
    found = [Device("cpu", device_name("cpu"), memory.total, memory.available, detail)]
    for kind in _WITH_MEMORY:
        library = getattr(torch, kind, None)
        if library is None or not library.is_available():
            continue
        for index in range(library.device_count()):
            free, total = library.mem_get_info(index)
            name = library.get_device_name(index)
            detail = ", ".join(filter(None, (_capability(kind, index), _runtime(kind))))
            found.append(Device(f"{kind}:{index}", name, total, free, detail))
    if torch.backends.mps.is_available():
        limit = torch.mps.recommended_max_memory()
        free = limit - torch.mps.driver_allocated_memory()
        found.append(Device("mps", device_name("mps"), limit, free, "shared with the CPU"))
    return tuple(found)


def busy() -> float | None:
    """Return the processes that want to run, for each core; None where the system can't say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


def broken_imports() -> dict[str, str]:
    """Return the libraries that can't be imported, with the reason."""
    import importlib

    broken = {}
    for name in ("diffusers", "transformers", "accelerate", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever an import raises is the finding
            broken[name] = f"{type(error).__name__}: {error}"
    return broken


def hub() -> Hub:
    """Return where models are cached and whether the Hub may be asked."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    there = os.path.isdir(cache)  # noqa: PTH112 - a string, as the library holds it
    return Hub(cache, there, bool(constants.HF_HUB_OFFLINE))


def speeds(device: str, dtype: str) -> list[Speed]:
    """Time one Linear layer, unquantized and in each weights dtype, in alternating calls."""
    rows, calls = [], {}
    kind = getattr(torch, dtype)
    for word in WORDS:
        row = Speed(dtype, word)
        try:
            torch.manual_seed(0)
            layer = nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=kind, device=device)).eval()
            if word != REFERENCE:
                layer, _ = quantize(layer, word)
            row = dataclasses.replace(row, kernel=kernel_of(layer[0]))
            calls[word] = _call(layer, torch.randn(ROWS, WIDTH, dtype=kind, device=device))
            calls[word](), calls[word]()  # first calls pay for what later ones find
        except Exception as error:  # a device that can't: said in the table
            calls.pop(word, None)
            row = dataclasses.replace(row, error=with_kind(error))
        rows.append(row)
    timings = time_alternating(calls, lambda: synchronize(device))
    return [_timed(row, timings) for row in rows]


def _timed(row: Speed, timings: dict[str, Timing]) -> Speed:
    timing, reference = timings.get(row.weights), timings.get(REFERENCE)
    if timing is None:
        return row
    compared = reference is not None and row.weights != REFERENCE
    return dataclasses.replace(
        row,
        seconds=statistics.median(timing.samples),
        against=_against(reference, timing) if compared else None,
    )


def _against(reference: Timing, timing: Timing) -> str | None:
    ratio = paired_ratio(reference.samples, timing.samples)
    return verdict_words(ratio.verdict, ratio.middle, ratio.low, ratio.high, None)


def time_alternating(
    calls: dict[str, Callable[[], Any]],
    wait: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Return timings of several calls, one of each in turn, so that drift hits all alike.

    Parameters
    ----------
    calls : dict
        What is timed, by name.
    wait : callable
        Returns when the device has done all that was asked of it.
    clock : callable
        Seconds.
    """

    def once(call: Callable[[], Any], times: int) -> float:
        wait()
        started = clock()
        for _ in range(times):
            call()
        wait()
        return (clock() - started) / times

    repeats = {
        name: max(1, min(100, int(_SAMPLE_SECONDS / max(once(call, 1), 1e-9))))
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            samples[name].append(once(call, repeats[name]))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _call(layer: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return layer(x)

    return call


def _capability(kind: str, index: int) -> str:
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability(index)
        return f"compute capability {major}.{minor}"
    return ""


def _runtime(kind: str) -> str:
    """Return what torch was built for."""
    if kind == "xpu":
        return f"XPU {getattr(torch.version, 'xpu', None) or 'unknown'}"
    hip = getattr(torch.version, "hip", None)
    return f"HIP {hip}" if hip else f"CUDA {torch.version.cuda or 'unknown'}"


def _driver(kind: str, device: str) -> str | None:
    """Return the version of the driver, which torch knows of Intel's alone."""
    if kind == "xpu":
        return getattr(torch.xpu.get_device_properties(device), "driver_version", None)
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(
            asked, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = said.stdout.split()
    return lines[0] if lines and not said.returncode else None
