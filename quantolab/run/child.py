"""What a child process does for a comparison: plan, encode prompts, run one trial."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from ..backends import check_supported, import_layers, package_versions, quantized_inputs
from ..devices import (
    free_bytes,
    give_back,
    held_bytes,
    processor_computes,
    resolve_device,
)
from ..errors import UnsupportedError, is_out_of_memory
from ..loading.lora import lora_bytes
from ..measure.conditions import describe_conditions
from ..measure.frames import frame_size
from ..measure.memory import PeakMemory, private_bytes
from ..measure.other_load import OtherLoad
from ..measure.quality import picture_flip, picture_quality
from ..models.resolving import check_recipe, reference_share, resolve, shares_in
from ..models.skeleton import build_skeleton
from ..planning.plan import recipe_needs
from ..planning.predict import predict_weight_bytes
from ..processes.jobs import Desk
from ..recipes import Recipe
from ..records import PictureQuality, Timing, Workload
from . import studio
from .calibrating import calibrated
from .encoding import encode_ahead, save_encoded
from .jobs import (
    IMAGES,
    MAKING,
    NOT_REPEATABLE,
    Encoded,
    EncodeJob,
    Generated,
    Generation,
    Looked,
    LookJob,
    PlanJob,
    Planned,
    RecipePlan,
    TrialFound,
    TrialJob,
    compile_seconds,
)
from .origin import origin_of, write_picture
from .reordered import sums_reordered
from .torch_compile import use_own_cache

if TYPE_CHECKING:
    from PIL import Image

MOST_CALIBRATED = 4
"""Prompts by which activations are calibrated, at most."""

NOT_COMPILED = (
    "activations that are quantized aren't compiled: torch.compile hasn't been shown to take them; "
    "leave --compile out, or activations"
)


def look(asked: LookJob, desk: Desk) -> Looked:
    """Return which device this machine has, and under which conditions it works."""
    device = resolve_device(asked.device)
    return Looked(device, describe_conditions(device, None))


def plan(asked: PlanJob, desk: Desk) -> Planned:
    """Return the device, what each recipe will hold in bytes and which layers it keeps.

    Builds the components on the meta device: no weight is read.
    """
    device = resolve_device(asked.device)
    if asked.source.pipeline is not None:
        studio.check_pipeline(asked.source.pipeline, asked.frames)
    with desk.signs_of_life():
        parts = {
            name: build_skeleton(asked.source.component(name), dtype=asked.dtype)
            for name in asked.components
        }
        added = {} if asked.lora is None else lora_bytes(asked.source, asked.lora, asked.dtype)
        plans = tuple(_plan(asked, device, recipe, parts, added) for recipe in asked.recipes)
        if asked.size is None or device.partition(":")[0] not in ("cuda", "xpu"):
            emulated = device == "cpu" and not processor_computes(asked.dtype)
            return Planned(device, plans, lora_bytes=added, emulated=emulated)
        needs = recipe_needs(asked.source, asked.recipes, asked.size, asked.dtype, asked.frames)
        more = sum(added.values())
        needs = {label: need and need.beside(more) for label, need in needs.items()}
        return Planned(device, plans, needs, free_bytes(device), added)


def _plan(
    asked: PlanJob,
    device: str,
    recipe: Recipe,
    skeletons: dict[str, torch.nn.Module],
    added: dict[str, int],
) -> RecipePlan:
    shares = shares_in(recipe, asked.source)
    total, kept, found = 0, [], {}
    for name, module in skeletons.items():
        share = shares.get(name, reference_share(name))
        try:
            resolved = resolve(module, share, dtype=asked.dtype, strict=False)
            layers = ((choice.layer, choice.word) for choice in resolved.quantized)
            check_supported(layers, asked.dtype, device)
        except UnsupportedError as error:
            return RecipePlan(None, (), tuple(shares), str(error))
        total += predict_weight_bytes(module, resolved.words, asked.dtype) + added.get(name, 0)
        if name in shares:
            found[name] = (share, resolved)
            kept += [f"{name}.{path}" for path in sorted(path for path, _ in resolved.kept)]
    check_recipe(recipe, found)
    return RecipePlan(total, tuple(kept), tuple(shares))


def encode(asked: EncodeJob, desk: Desk) -> Encoded:
    """Encode the prompts once for all trials that don't quantize text encoders."""
    with desk.signs_of_life():
        encoded = encode_ahead(asked.source, asked.workload, device=asked.workload.device)
    if encoded is not None:
        save_encoded(encoded, asked.path)
    return Encoded(encoded is not None)


def run_trial(asked: TrialJob, desk: Desk) -> TrialFound:
    """Run one recipe: load, quantize, make every picture, and be timed.

    A trial that is held makes one picture more each time it is asked to; else it times itself,
    `repeats` times.
    """
    if asked.compiled:
        if asked.recipe.activations is not None:
            raise UnsupportedError(NOT_COMPILED)
        use_own_cache(desk.folder)
    desk.stage("loading")
    with desk.signs_of_life():
        import_layers(asked.recipe.words)  # of other backends: neither timed nor counted
    before, device = private_bytes(), asked.workload.device
    free_before = None if device == "cpu" else free_bytes(device)
    with desk.signs_of_life(), PeakMemory(device) as loading:
        prepared = studio.prepare(asked)
    maker = _Repeating(prepared, asked.workload, desk)
    if asked.recipe.activations is not None:
        desk.stage("calibrating")
        with desk.signs_of_life():
            prepared.notes += maker.calibrate()
    with PeakMemory(device) as peak:
        warmup = _pictures(asked, desk, maker)
        timing, compiling = Timing((), tuple(warmup)), None
        if not asked.held:
            timing = _timed(maker, desk, warmup, asked.workload.repeats)
            if asked.compiled:
                compiling = compile_seconds(timing)
    after = private_bytes()
    found = TrialFound(
        prepared.weight_bytes,
        prepared.file_bytes,
        peak.bytes,
        prepared.load_seconds,
        compiling,
        timing,
        (*prepared.notes, *maker.notes()),
        describe_conditions(device, peak.method),
        max(maker.sizes),
        None if before is None or after is None else max(0, after - before),
        peak.reserved,
        None if device == "cpu" else loading.bytes,
        free_before,
        free_bytes(device),
        _beside(device),
        prepared.when_encoded,
        ", ".join(package_versions(asked.recipe.words).values()) or None,
        prepared.kernel,
    )
    if asked.held:
        desk.hold(found, maker.generate, Generation)
    return found


def _beside(device: str) -> int | None:
    held = held_bytes(device)
    return None if held is None else max(0, held[0] - held[1])


class _Repeating:
    """Makes pictures of a workload by their numbers, and sees whether they stay the same."""

    def __init__(self, prepared: studio.Prepared, workload: Workload, desk: Desk) -> None:
        self._maker = maker = studio.Studio(prepared, workload, desk)
        self._denoiser, self._pipe = prepared.denoiser, prepared.pipe
        self._workload = workload
        self._seen: dict[int, bytes] = {}
        self._same = True
        self.tells_steps = maker.tells_steps
        self.sizes: dict[tuple[int, int], int] = {}

    def make(self, number: int, *, counted: bool = True) -> tuple[Image.Image, float]:
        picture, seconds = self._maker.make(*self._workload.pairs[number], counted=counted)
        pixels = picture.tobytes()
        self._same &= self._seen.setdefault(number, pixels) == pixels
        self.sizes[picture.size] = number
        return picture, seconds

    def calibrate(self) -> tuple[str, ...]:
        """Find the scales of quantized activations by some of the run's prompts, from other noise.

        Returns
        -------
        tuple of str
            What is to be said of it.
        """
        prompts, seed = self._workload.prompts[:MOST_CALIBRATED], max(self._workload.seeds) + 1

        def pictures() -> None:
            for prompt in prompts:
                self._maker.pixels(prompt, seed)

        said = [f"activations calibrated on {len(prompts)} of the run's prompts, from other noise"]
        for name, part in self._pipe.components.items():
            if isinstance(part, torch.nn.Module) and quantized_inputs(part):
                said += [f"{name}: {note}" for note in calibrated(part, pictures).said]
        return tuple(said)

    def generate(self, asked: Generation) -> Generated:
        """Make one picture more, and look at what others do meanwhile."""
        if asked.reordered:
            return self._reordered(asked.number)
        with OtherLoad() as others:
            _, seconds = self.make(asked.number)
        return Generated(
            seconds,
            self._same,
            others.seconds,
            others.room,
            device_bytes=held_bytes(self._workload.device),
        )

    def _reordered(self, number: int) -> Generated:
        """Make a picture with reordered sums, which takes more memory than one without."""
        try:
            return Generated(0.0, self._same, None, 0.0, self._floor(number))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        give_back(self._workload.device)
        return Generated(0.0, self._same, None, 0.0)

    def _floor(self, number: int) -> PictureQuality | None:
        from PIL import Image

        place = self._workload.pairs[number]
        if number not in self._seen:
            self.make(number, counted=False)
        with sums_reordered(self._denoiser) as layers:
            picture, _ = self._maker.make(*place, counted=False)
        if not layers:
            return None
        theirs = Image.frombytes("RGB", picture.size, self._seen[number])
        theirs.info = dict(picture.info)
        psnr_db, ssim = picture_quality(picture, theirs)
        return PictureQuality(*place, psnr_db, ssim, picture_flip(picture, theirs))

    def notes(self) -> list[str]:
        notes = [] if self._same else [NOT_REPEATABLE]
        made = {frame_size(size, self._workload.frames) for size in self.sizes}
        if made != {self._workload.size}:
            said = "{}x{}, though {}x{} was asked for".format(*max(made), *self._workload.size)
            notes.append(f"the pictures are {said}: this pipeline changes sizes")
        return notes


def _pictures(asked: TrialJob, desk: Desk, maker: _Repeating) -> list[float]:
    """Make every picture and keep it; of a trial whose pictures are known one, to warm up."""
    desk.stage("warming up" if asked.known else MAKING)
    images = desk.folder / IMAGES
    images.mkdir(exist_ok=True)
    conditions = describe_conditions(asked.workload.device, None)
    warmup = []
    # Compiling calls nobody back, nor do some pipelines.
    quiet = asked.compiled or not maker.tells_steps
    with desk.signs_of_life() if quiet else nullcontext():
        for number in asked.wanted:
            picture, seconds = maker.make(number, counted=not asked.known)
            if not asked.known:
                path = images / f"{number:03d}.png"
                write_picture(picture, path, origin_of(
                    asked.workload, asked.recipe, asked.workload.pairs[number], conditions,
                    compiled=asked.compiled,
                ))  # fmt: skip
                desk.file(path, number)
            warmup.append(seconds)
    return warmup


def _timed(maker: _Repeating, desk: Desk, warmup: list[float], repeats: int) -> Timing:
    desk.stage("timing")
    with OtherLoad() as others:
        count = len(warmup)
        samples = [maker.make(repeat % count)[1] for repeat in range(repeats)]
    return Timing(tuple(samples), tuple(warmup), others.share)
