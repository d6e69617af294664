"""What a child process does for a comparison: plan, encode prompts, run one trial."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from ..devices import resolve_device
from ..measure.conditions import describe_conditions
from ..measure.memory import PeakMemory
from ..measure.other_load import OtherLoad
from ..models.resolving import check_recipe, reference_share, resolve, shares_in
from ..models.skeleton import build_skeleton
from ..planning.predict import predict_weight_bytes
from ..processes.jobs import Desk
from ..recipes import Recipe
from ..records import Timing
from . import studio
from .jobs import IMAGES, Encoded, EncodeJob, PlanJob, Planned, RecipePlan, TrialFound, TrialJob
from .torch_compile import use_own_cache


def plan(asked: PlanJob, desk: Desk) -> Planned:
    """Return the device, what each recipe will hold in bytes and which layers it keeps.

    Builds the components on the meta device: no weight is read.
    """
    device = resolve_device(asked.device)
    if asked.source.pipeline is not None:
        studio.check_pipeline(asked.source.pipeline)
    with desk.signs_of_life():
        parts = {
            name: build_skeleton(asked.source.component(name), dtype=asked.dtype)
            for name in asked.components
        }
        return Planned(device, tuple(_plan(asked, recipe, parts) for recipe in asked.recipes))


def _plan(asked: PlanJob, recipe: Recipe, skeletons: dict[str, torch.nn.Module]) -> RecipePlan:
    shares = shares_in(recipe, asked.source)
    total, kept, found = 0, [], {}
    for name, module in skeletons.items():
        share = shares.get(name, reference_share(name))
        resolved = resolve(module, share, dtype=asked.dtype, strict=False)
        total += predict_weight_bytes(module, resolved.words, asked.dtype)
        if name in shares:
            found[name] = (share, resolved)
            kept += [f"{name}.{path}" for path in sorted(path for path, _ in resolved.kept)]
    check_recipe(recipe, found)
    return RecipePlan(total, tuple(kept), tuple(shares))


def encode(asked: EncodeJob, desk: Desk) -> Encoded:
    """Encode the prompts once for all trials that don't quantize text encoders."""
    with desk.signs_of_life():
        encoded = studio.encode_prompts(
            asked.source, asked.prompts, dtype=asked.dtype, device=asked.device
        )
    if encoded is not None:
        studio.save_encoded(encoded, asked.path)
    return Encoded(encoded is not None)


def run_trial(asked: TrialJob, desk: Desk) -> TrialFound:
    """Run one recipe: load, quantize, make every picture, time the repeats."""
    workload = asked.workload
    if asked.compiled:
        use_own_cache(desk.folder)
    desk.stage("loading")
    with desk.signs_of_life():
        prepared = studio.prepare(asked)
    images = desk.folder / IMAGES
    images.mkdir(exist_ok=True)
    pairs = workload.pairs
    maker = studio.Studio(prepared, workload, desk)
    warmup, samples, repeatable = [], [], True
    with PeakMemory(workload.device) as peak:
        first, sizes = {}, {}
        desk.stage("making the pictures")
        # Compiling calls nobody back, nor do some pipelines.
        quiet = asked.compiled or not maker.tells_steps
        with desk.signs_of_life() if quiet else nullcontext():
            for number, (prompt, seed) in enumerate(pairs):
                picture, seconds = maker.make(prompt, seed)
                picture.save(images / f"{number:03d}.png")
                warmup.append(seconds)
                first[number] = picture.tobytes()
                sizes[picture.size] = number
        desk.stage("timing")
        with OtherLoad() as others:
            for repeat in range(workload.repeats):
                number = repeat % len(pairs)
                picture, seconds = maker.make(*pairs[number])
                samples.append(seconds)
                repeatable &= picture.tobytes() == first[number]
    notes = list(prepared.notes)
    if not repeatable:
        notes.append("the same prompt and seed did not give the same pixels every time")
    size = max(sizes)
    if set(sizes) != {workload.size}:
        said = "{}x{}, though {}x{} was asked for".format(*size, *workload.size)
        notes.append(f"the pictures are {said}: this pipeline changes sizes")
    compiling = max(0.0, warmup[0] - sorted(samples)[len(samples) // 2]) if asked.compiled else None
    return TrialFound(
        prepared.weight_bytes,
        prepared.file_bytes,
        peak.bytes,
        prepared.load_seconds,
        compiling,
        Timing(tuple(samples), tuple(warmup), others.share),
        tuple(notes),
        describe_conditions(workload.device, peak.method),
        size,
    )
