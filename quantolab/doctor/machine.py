"""What a child process finds out about the machine: devices, extensions, speed of each dtype."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..backends.quanto import quantize
from ..backends.quanto.kernels import kernel_of
from ..backends.quanto.shipped import extension_states, never_build
from ..devices import device_name, resolve_device, synchronize
from ..measure.statistics import verdict
from ..recipes import COMPUTE_DTYPES, REFERENCE, WEIGHTS
from ..records import Timing
from .agreed import ROUNDS, ROWS, WIDTH

_SAMPLE_SECONDS = 2e-3  # one sample lasts at least so long: shorter calls are repeated in it


def examine(request: dict, emit: Any) -> dict:
    """Return devices, memory, extensions, Hub cache and measured speeds. A job."""
    device = resolve_device(request["device"])
    extensions = [
        {**asdict(state), "folder": str(state.folder), "lock": state.lock and str(state.lock)}
        for state in extension_states()
    ]
    never_build()  # an answer is due in seconds
    return {
        "device": device,
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "busy": busy(),
        "imports": broken_imports(),
        "extensions": extensions,
        "hub": hub(),
        "speeds": [row for dtype in COMPUTE_DTYPES for row in speeds(device, dtype)],
    }


def devices() -> list[dict]:
    """Return each device: its name, memory in bytes, and what decides which kernels it has."""
    import psutil

    memory = psutil.virtual_memory()
    found = [
        {
            "device": "cpu",
            "name": device_name("cpu"),
            "memory_bytes": memory.total,
            "free_bytes": memory.available,
            "detail": torch.backends.cpu.get_cpu_capability(),
        }
    ]
    for kind in ("cuda", "xpu"):
        library = getattr(torch, kind, None)
        if library is None or not library.is_available():
            continue
        for index in range(library.device_count()):
            free, total = library.mem_get_info(index)
            found.append(
                {
                    "device": f"{kind}:{index}",
                    "name": library.get_device_name(index),
                    "memory_bytes": total,
                    "free_bytes": free,
                    "detail": _capability(kind, index),
                }
            )
    if torch.backends.mps.is_available():
        limit = torch.mps.recommended_max_memory()
        free = limit - torch.mps.driver_allocated_memory()
        found.append(
            {
                "device": "mps",
                "name": device_name("mps"),
                "memory_bytes": limit,
                "free_bytes": free,
                "detail": "shared with the CPU",
            }
        )
    return found


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


def hub() -> dict:
    """Return where models are cached and whether the Hub may be asked."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    return {
        "cache": cache,
        "there": os.path.isdir(cache),  # noqa: PTH112 - a string, as the library holds it
        "offline": bool(constants.HF_HUB_OFFLINE),
    }


def speeds(device: str, dtype: str) -> list[dict]:
    """Time one Linear layer, unquantized and in each weights dtype, in alternating calls.

    Returns
    -------
    list of dict
        ``dtype, weights, kernel, seconds`` (median of one call), ``against`` (what the timings
        show against the unquantized layer; None for that itself) and ``error``, which is empty
        unless the layer can't run.
    """
    rows, calls = [], {}
    kind = getattr(torch, dtype)
    for weights in WEIGHTS:
        row = {"dtype": dtype, "weights": weights, "kernel": "", "error": ""}
        try:
            torch.manual_seed(0)
            layer = nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=kind, device=device)).eval()
            if weights != REFERENCE:
                layer, _ = quantize(layer, weights)
            row["kernel"] = kernel_of(layer[0])
            calls[weights] = _call(layer, torch.randn(ROWS, WIDTH, dtype=kind, device=device))
            calls[weights](), calls[weights]()  # first calls pay for what later ones find
        except Exception as error:  # a device that can't: said in the table
            calls.pop(weights, None)
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        rows.append(row)
    timings = time_alternating(calls, lambda: synchronize(device))
    for row in rows:
        timing = timings.get(row["weights"])
        reference = timings.get(REFERENCE)
        row["seconds"] = timing and statistics.median(timing.samples)
        compared = timing and reference and row["weights"] != REFERENCE
        row["against"] = verdict(reference, timing) if compared else None
    return rows


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
