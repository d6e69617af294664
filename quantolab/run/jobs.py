"""The jobs of a comparison: what a child is asked for, and what it finds. Imports nothing heavy."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ..models.source import Source
from ..planning.needs import Needs
from ..recipes import Recipe
from ..records import Conditions, PictureQuality, Timing, WhenEncoded, Workload
from .ways import Way


@dataclass(frozen=True)
class LookJob:
    """See which device there is."""

    device: str
    """As it was asked for."""


@dataclass(frozen=True)
class Looked:
    """What a process sees of its machine."""

    device: str
    """What was asked for, ``auto`` resolved."""
    conditions: Conditions


@dataclass(frozen=True)
class PlanJob:
    """Resolve the device, and each recipe against the model's shapes."""

    source: Source
    device: str
    dtype: str
    components: tuple[str, ...]
    """Those whose bytes are counted, whatever a recipe does with them."""
    recipes: tuple[Recipe, ...]
    size: tuple[int, int] | None = None
    """Of the pictures, where what they take of an accelerator is to be told."""
    lora: Path | None = None
    """File of what every pipeline carries beside."""
    frames: int | None = None
    """Of each video; None for pictures."""


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe will do."""

    predicted_weight_bytes: int | None
    """None where the recipe can't be."""
    kept_layers: tuple[str, ...]
    """Full paths, component first."""
    components: tuple[str, ...]
    """Those that it quantizes."""
    unsupported: str = ""
    """Why it can't be run, known before anything is loaded; empty if it can."""


@dataclass(frozen=True)
class Planned:
    """What planning found."""

    device: str
    plans: tuple[RecipePlan, ...]
    """In the order of the recipes."""
    needs: dict[str, Needs | None] = field(default_factory=dict)
    """What each recipe takes of an accelerator, by label; empty on a CPU."""
    free_bytes: int | None = None
    """What is free there."""
    lora_bytes: dict[str, int] = field(default_factory=dict)
    """What a LoRA adds to each component that it changes; empty without one."""
    emulated: bool = False
    """Whether the processor that computes doesn't do so in the compute dtype by itself."""


@dataclass(frozen=True)
class EncodeJob:
    """Encode prompts once for all trials."""

    source: Source
    workload: Workload
    """With the device that encodes."""
    path: Path
    """Where they go."""


@dataclass(frozen=True)
class Encoded:
    """Whether this pipeline's prompts can be encoded ahead; only then they are written."""

    ahead: bool


@dataclass(frozen=True)
class TrialJob:
    """Run one recipe on a workload."""

    source: Source
    workload: Workload
    recipe: Recipe
    components: tuple[str, ...]
    """Those whose bytes are counted."""
    compiled: bool = False
    encoded: Path | None = None
    """File of encoded prompts; None has the trial encode them itself."""
    held: bool = False
    """Whether the process stays alive after its pictures, to be asked for more, one at a time."""
    known: bool = False
    """Whether the pictures are there from an earlier run: one is made to warm up, none kept."""
    way: Way = field(default_factory=Way)
    """How it gets onto its device."""
    numbers: tuple[int, ...] = ()
    """Which pictures it makes, by their place in the workload's pairs; empty for all."""
    lora: Path | None = None
    """File of the workload's LoRA."""

    @property
    def wanted(self) -> tuple[int, ...]:
        """The pictures to make before anything is timed."""
        numbers = self.numbers or tuple(range(len(self.workload.pairs)))
        return numbers[:1] if self.known else numbers


@dataclass(frozen=True)
class TrialFound:
    """What a trial found; its pictures lie in ``images`` in the job's folder."""

    weight_bytes: int
    file_bytes: int | None
    peak_bytes: int | None
    load_seconds: float
    compile_seconds: float | None
    timing: Timing
    notes: tuple[str, ...]
    conditions: Conditions
    picture_size: tuple[int, int] | None = None
    private_bytes: int | None = None
    """What the process held beyond its state before loading; None where that can't be told."""
    reserved_bytes: int | None = None
    load_peak_bytes: int | None = None
    free_before_bytes: int | None = None
    """As `Trial` says."""
    room_bytes: int | None = None
    """What is free where it runs, with all that it holds already taken."""
    beside_bytes: int | None = None
    """Of an accelerator's memory what is taken beside what it allocated: by its own context, and by
    other programs."""
    encoded: WhenEncoded | None = None
    backend_version: str | None = None
    kernel: str | None = None
    """What multiplies by the quantized weights, in words."""


@dataclass(frozen=True)
class Generation:
    """Make one picture more: what a trial that is held is asked."""

    number: int
    """Which prompt and seed, by its place in the workload's pairs."""
    reordered: bool = False
    """Whether with its sums in another order; its nearness to the same picture is answered."""


@dataclass(frozen=True)
class Generated:
    """How that went."""

    seconds: float
    same: bool
    """Whether the pixels are those of the last time."""
    other_seconds: float | None
    """Processor seconds that others took meanwhile; None where the system doesn't say."""
    room_seconds: float
    """Processor seconds that there were."""
    quality: PictureQuality | None = None
    """Of a picture with reordered sums; None where there is nothing to reorder."""
    device_bytes: tuple[int, int] | None = None
    """Of an accelerator's memory: what everybody held, and what this process did."""


NOT_REPEATABLE = "the same prompt and seed did not give the same pixels every time"


def compile_seconds(timing: Timing) -> float | None:
    """Return what the first generation, which compiled, took longer than a steady one."""
    if not timing.samples or not timing.warmup:
        return None
    return max(0.0, timing.warmup[0] - statistics.median(timing.samples))


MAKING = "making the pictures"
"""Stage of a trial in which its pictures come."""
IMAGES = "images"
"""Folder of a trial's pictures, ``000.png`` and so on, in its job's."""
