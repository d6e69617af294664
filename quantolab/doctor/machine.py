"""What a child process finds out about the machine: devices, extensions, speed of each dtype."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..backends.quanto.as_shipped import extension_states, never_build
from ..backends.quanto.kernels import kernel_of
from ..devices import device_name, resolve_device, synchronize
from ..errors import with_kind
from ..loading.in_memory import quantize
from ..measure.ratios import paired_ratio, verdict_words
from ..processes.jobs import Desk
from ..recipes import COMPUTE_DTYPES
from ..records import Timing
from ..weights import REFERENCE, WORDS
from .constants import ROUNDS, ROWS, WIDTH
from .jobs import Device, ExamineJob, Extension, Hub, Machine, Speed

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


def devices() -> tuple[Device, ...]:
    """Return each device: its name, memory in bytes, and what decides which kernels it has."""
    import psutil

    memory = psutil.virtual_memory()
    detail = torch.backends.cpu.get_cpu_capability()
    found = [Device("cpu", device_name("cpu"), memory.total, memory.available, detail)]
    for kind in ("cuda", "xpu"):
        library = getattr(torch, kind, None)
        if library is None or not library.is_available():
            continue
        for index in range(library.device_count()):
            free, total = library.mem_get_info(index)
            name, detail = library.get_device_name(index), _capability(kind, index)
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
        return f"compute capability {major}.{minor}, CUDA {torch.version.cuda}"
    return ""
