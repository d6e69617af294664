"""One recipe compiled in one way, in a child process: whether it compiles, what it costs and gains.

Eager and compiled pictures alternate in one process, so that a machine that drifts hits both.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..devices import synchronize
from ..measure.conditions import describe_conditions
from ..processes.jobs import Desk
from ..run.studio import Prepared, Studio, prepare
from ..run.torch_compile import compile_denoiser, use_own_cache
from .jobs import CompileFound, CompileJob


def measure_compiled(asked: CompileJob, desk: Desk) -> CompileFound:
    """Return what compiling one recipe in one way gives."""
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True
    use_own_cache(desk.folder)
    desk.stage("loading")
    workload = asked.trial.workload
    prepared = prepare(asked.trial)
    denoiser, device = prepared.denoiser, workload.device
    studio = Studio(prepared, workload, desk)
    prompt, seed = workload.pairs[0]
    inputs = _first_inputs(denoiser, lambda: studio.make(prompt, seed))
    eager = _call(denoiser, inputs)
    desk.stage("compiling")
    torch._dynamo.utils.counters.clear()
    compile_denoiser(denoiser, asked.way)
    first_seconds, output = _timed_call(denoiser, inputs, device)
    steady_seconds = min(_timed_call(denoiser, inputs, device)[0] for _ in range(3))
    graphs, breaks = _graphs_and_breaks()
    desk.stage("timing")
    first_picture, eager_samples, samples = _paired_samples(
        denoiser, lambda: studio.make(prompt, seed)[1], workload.repeats
    )
    later = max(0.0, first_picture - statistics.median(samples))
    return CompileFound(
        graphs,
        breaks,
        _recompilations(prepared, asked, desk),
        max(0.0, first_seconds - steady_seconds) + later,
        eager_samples,
        samples,
        _relative_difference(output, eager),
        describe_conditions(device, None),
    )


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
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Return seconds of the first compiled picture, and of eager and compiled ones made in turn.

    Later steps of the first may still compile something.
    """
    first = make()
    eager, compiled = [], []
    for _ in range(repeats):
        with _uncompiled(denoiser):
            eager.append(make())
        compiled.append(make())
    return first, tuple(eager), tuple(compiled)


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


def _recompilations(prepared: Prepared, asked: CompileJob, desk: Desk) -> int | None:
    """Return how many graphs another size adds; None if no other size was given."""
    if asked.other_size is None:
        return None
    desk.stage("another size")
    before = _graphs_and_breaks()[0]
    workload = dataclasses.replace(asked.trial.workload, size=asked.other_size)
    Studio(prepared, workload, desk).make(*workload.pairs[0])
    return _graphs_and_breaks()[0] - before


def _graphs_and_breaks() -> tuple[int, int]:
    counters = torch._dynamo.utils.counters
    return (
        int(counters["stats"]["unique_graphs"]),
        int(sum(counters["graph_break"].values())),
    )


def _relative_difference(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the reference."""
    reference = reference.double()
    return ((output.double() - reference).norm() / reference.norm()).item()
