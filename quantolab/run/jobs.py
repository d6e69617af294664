"""What a child process does: plan, encode prompts, run one trial, or a room's own job.

Plain values in and out.

Errors that we raise on purpose become part of the result; anything else ends the process with a
traceback in its log, and the parent makes a row of it.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..devices import resolve_device
from ..errors import ArgumentError, QuantolabError
from ..models.layers import check_patterns, linear_layers
from ..models.predict import predict_weight_bytes
from ..models.skeleton import build_skeleton
from ..models.source import find_model
from ..recipes import Recipe
from . import workload

Emit = Callable[[dict], None]


def run_job(request: dict, emit: Emit) -> None:
    """Do the job that a request names and write its result, whole or not at all.

    The kind is ``"plan"``, ``"encode"``, ``"trial"``, or ``"quantolab.room.module:function"`` for
    a job of a room above this one.
    """
    try:
        value = {"value": find_job(request["kind"])(request, emit)}
    except QuantolabError as error:
        value = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        traceback.print_exc()  # into the job's log
        first = (str(error).strip().splitlines() or [""])[0]
        what = "out of memory" if _is_out_of_memory(error) else type(error).__name__
        value = {"error": "JobFailed", "message": f"{what}: {first}".rstrip(": ")}
    target = Path(request["folder"]) / "result.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(target)


def find_job(kind: str) -> Callable[[dict, Emit], Any]:
    """Return the function that a kind of job names.

    Raises
    ------
    ArgumentError
        If it is none of ours.
    """
    jobs = {"plan": plan, "encode": encode, "trial": trial}
    if kind in jobs:
        return jobs[kind]
    module, colon, name = kind.partition(":")
    home = __name__.partition(".")[0]
    if colon and module.startswith(f"{home}.") and not name.startswith("_"):
        return getattr(importlib.import_module(module), name)
    raise ArgumentError(
        f"job {kind!r} is not known; allowed: {', '.join(jobs)}, or {home}.room.module:function"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on a CPU torch says so in a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def plan(request: dict, emit: Emit) -> dict:
    """Return the device, what each recipe will hold in bytes and which layers it keeps.

    Builds the components on the meta device: no weight is read.
    """
    from ..backends.quanto.quantize import resolve_layers

    device = resolve_device(request["device"])
    source = find_model(request["model"], weights=False)
    recipes = [Recipe.from_dict(r) for r in request["recipes"]]
    parts = [source.component(name) for name in request["components"]]
    skeletons = {part.name: build_skeleton(part) for part in parts}
    layers = {name: linear_layers(module) for name, module in skeletons.items()}
    plans = []
    for recipe in recipes:
        mine = recipe.components or (source.denoiser,)
        check_patterns(recipe.skip, {name: layers[name] for name in mine})
        total, kept, left = 0, [], 0
        for name, module in skeletons.items():
            weights = recipe.weights if name in mine else "none"
            part_recipe = Recipe(weights, recipe.skip if weights != "none" else ())
            resolved = resolve_layers(module, layers[name], part_recipe, name, request["dtype"])
            names = {path for path, _ in resolved.kept}
            total += predict_weight_bytes(module, weights, request["dtype"], names)
            left += len(resolved.quantized)
            if weights != "none":
                kept += [f"{name}.{path}" for path in sorted(names)]
        if not recipe.is_reference and not left:
            raise ArgumentError(
                f"the recipe '{recipe}' keeps every Linear layer: nothing to quantize"
            )
        plans.append(
            {
                "predicted_weight_bytes": total,
                "kept_layers": kept,
                "components": () if recipe.is_reference else mine,
            }
        )
    return {"device": device, "plans": plans}


def encode(request: dict, emit: Emit) -> dict:
    """Encode the prompts once for all trials that don't quantize text encoders.

    Returns
    -------
    dict
        ``{"encoded": whether this pipeline's prompts can be encoded ahead}``.
    """
    source = find_model(request["model"])
    kwargs = workload.encode_prompts(
        source, request["prompts"], dtype=request["dtype"], device=request["device"]
    )
    if kwargs is None:
        return {"encoded": False}
    workload.save_encoded(kwargs, Path(request["encoded"]))
    return {"encoded": True}


def trial(request: dict, emit: Emit) -> dict:
    """Run one recipe: load, quantize, make every picture, time the repeats.

    Pictures go to ``images/`` in the job's folder, figures into the result.
    """
    from ..measure.conditions import describe_conditions
    from ..measure.load import OtherLoad
    from ..measure.memory import PeakMemory

    device = request["device"]
    folder = Path(request["folder"])
    if request["compiled"]:
        from .compile_job import use_own_cache

        use_own_cache(request)
    emit({"event": "stage", "stage": "loading"})
    prepared = workload.prepare(request)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    pairs = [tuple(pair) for pair in request["pairs"]]
    studio = workload.Studio(prepared, request, emit)
    warmup, samples, repeatable = [], [], True
    with PeakMemory(device) as peak:
        first = {}
        emit({"event": "stage", "stage": "making the pictures"})
        for number, (prompt, seed) in enumerate(pairs):
            picture, seconds = studio.make(prompt, seed)
            picture.save(images / f"{number:03d}.png")
            warmup.append(seconds)
            first[number] = picture.tobytes()
        emit({"event": "stage", "stage": "timing"})
        with OtherLoad() as others:
            for repeat in range(request["repeats"]):
                number = repeat % len(pairs)
                picture, seconds = studio.make(*pairs[number])
                samples.append(seconds)
                repeatable &= picture.tobytes() == first[number]
    notes = list(prepared.notes)
    if not repeatable:
        notes.append("the same prompt and seed did not give the same pixels every time")
    compiled = request["compiled"]
    return {
        "weight_bytes": prepared.weight_bytes,
        "file_bytes": prepared.file_bytes,
        "peak_bytes": peak.bytes,
        "load_seconds": prepared.load_seconds,
        "compile_seconds": max(0.0, warmup[0] - sorted(samples)[len(samples) // 2])
        if compiled
        else None,
        "timing": {"samples": samples, "warmup": warmup, "other_load": others.share},
        "notes": notes,
        "conditions": describe_conditions(device, peak.method),
    }
