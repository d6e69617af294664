"""One recipe compiled in one way, in a child process: whether it compiles, what it costs and gains.

Eager and compiled pictures alternate in one process, so that a machine that drifts hits both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..devices import synchronize
from ..errors import UnsupportedError
from ..measure.conditions import describe_conditions
from . import workload

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "fullgraph": {"fullgraph": True},
    "max-autotune": {"mode": "max-autotune"},
    "dynamic": {"dynamic": True},
    "repeated-blocks": {"fullgraph": True},
}
"""Ways of compiling a denoiser, and what each passes to ``torch.compile``."""


def compile_denoiser(denoiser: torch.nn.Module, way: str) -> None:
    """Compile a denoiser in place in one of the `WAYS`; nothing is traced before its first call.

    Raises
    ------
    UnsupportedError
        If the class names no repeated blocks.
    """
    if way != "repeated-blocks":
        denoiser.compile(**WAYS[way])
        return
    if not getattr(denoiser, "_repeated_blocks", None):
        raise UnsupportedError(f"{type(denoiser).__name__} names no repeated blocks")
    denoiser.compile_repeated_blocks(**WAYS[way])


def measure_compiled(request: dict, emit: Callable[[dict], None]) -> dict:
    """Return what compiling one recipe in one way gives; columns as in `compile_report`.

    Parameters
    ----------
    request : dict
        As for a trial, with ``way`` and ``other_size``.
    emit : callable
        Takes progress events.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True
    use_own_cache(request)
    emit({"event": "stage", "stage": "loading"})
    prepared = workload.prepare({**request, "compiled": False})
    denoiser, device = prepared.denoiser, request["device"]
    studio = workload.Studio(prepared, request, emit)
    prompt, seed = request["pairs"][0]
    inputs = _first_inputs(denoiser, lambda: studio.make(prompt, seed))
    eager = _call(denoiser, inputs)
    emit({"event": "stage", "stage": "compiling"})
    torch._dynamo.utils.counters.clear()
    compile_denoiser(denoiser, request["way"])
    first_seconds, output = _timed_call(denoiser, inputs, device)
    steady_seconds = min(_timed_call(denoiser, inputs, device)[0] for _ in range(3))
    counted = _graphs_and_breaks()
    emit({"event": "stage", "stage": "timing"})
    samples = _paired_samples(denoiser, lambda: studio.make(prompt, seed)[1], request["repeats"])
    return {
        **counted,
        **samples,
        "recompilations": _recompilations(prepared, request, emit),
        "compile_seconds": max(0.0, first_seconds - steady_seconds),
        "difference": _relative_difference(output, eager),
        "conditions": describe_conditions(device, None),
    }


def use_own_cache(request: dict) -> None:
    """Make this process compile into its job's own folder.

    A cache that an earlier process filled would hide what compiling costs, and one that was killed
    while it compiled leaves a cut library there, which breaks every later run.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(request["folder"]) / "inductor")


def _first_inputs(denoiser: torch.nn.Module, make: Callable[[], Any]) -> tuple[tuple, dict]:
    """Return the arguments of the denoiser's first call while a picture is made."""
    seen: list[tuple[tuple, dict]] = []
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, dict(kwargs))), with_kwargs=True
    )
    make()  # a warm-up as well
    handle.remove()
    return seen[0]


def _call(denoiser: torch.nn.Module, inputs: tuple[tuple, dict]) -> torch.Tensor:
    with torch.no_grad():
        result = denoiser(*inputs[0], **inputs[1])
    return (result[0] if isinstance(result, tuple) else result.sample).clone()


def _timed_call(denoiser: torch.nn.Module, inputs, device: str) -> tuple[float, torch.Tensor]:
    synchronize(device)
    started = time.perf_counter()
    output = _call(denoiser, inputs)
    synchronize(device)
    return time.perf_counter() - started, output


def _paired_samples(
    denoiser: torch.nn.Module, make: Callable[[], float], repeats: int
) -> dict[str, list[float]]:
    """Return seconds of eager and of compiled pictures, made in turn."""
    make()  # later steps of a picture may still compile something
    eager, compiled = [], []
    for _ in range(repeats):
        with _uncompiled(denoiser):
            eager.append(make())
        compiled.append(make())
    return {"eager_samples": eager, "compiled_samples": compiled}


@contextmanager
def _uncompiled(denoiser: torch.nn.Module) -> Iterator[None]:
    """Run a denoiser that was compiled in place as it was before, for a while."""
    calls = {m: m._compiled_call_impl for m in denoiser.modules() if m._compiled_call_impl}
    for module in calls:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call


def _recompilations(prepared, request: dict, emit) -> int | None:
    """Return how many graphs another size adds; None if no other size was given."""
    if not request["other_size"]:
        return None
    emit({"event": "stage", "stage": "another size"})
    before = _graphs_and_breaks()["graphs"]
    studio = workload.Studio(prepared, {**request, "size": request["other_size"]}, emit)
    studio.make(*request["pairs"][0])
    return _graphs_and_breaks()["graphs"] - before


def _graphs_and_breaks() -> dict[str, int]:
    counters = torch._dynamo.utils.counters
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": int(sum(counters["graph_break"].values())),
    }


def _relative_difference(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the reference."""
    reference = reference.double()
    return ((output.double() - reference).norm() / reference.norm()).item()
