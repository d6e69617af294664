"""What was observed, as frozen plain values. Raw observations are stored, the rest is derived.

A value that could not be measured is ``None``, never zero. Records cross process boundaries and
go to disk as `plain_values` writes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .errors import ArgumentError, QuantolabError, UnsupportedError, with_kind
from .plain_values import LATER
from .recipes import Recipe
from .units import format_count, format_list

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL import Image

Status = Literal["asked", "ok", "failed", "unsupported"]
ASKED: Status = "asked"
"""A trial that hasn't ended: asked for, and perhaps running."""
OK: Status = "ok"
FAILED: Status = "failed"
UNSUPPORTED: Status = "unsupported"
"""How a trial ends. The last two carry a reason."""

Timed = Literal["rounds", "pairs", "alone"]
ROUNDS: Timed = "rounds"
PAIRS: Timed = "pairs"
ALONE: Timed = "alone"
"""How a trial was timed: in rounds with all others, in rounds with the reference alone, or by
itself, which shows no difference."""

WhenEncoded = Literal["ahead", "trial"]
AHEAD: WhenEncoded = "ahead"
IN_TRIAL: WhenEncoded = "trial"
"""When a trial's prompts were encoded: once for all trials, or by itself."""


@dataclass(frozen=True)
class Timing:
    """Seconds of whole generations, one picture each, from encoded prompt to finished pixels."""

    samples: tuple[float, ...]
    """One value a timed generation, in the order they ran."""
    warmup: tuple[float, ...] = ()
    """The generations before them, the first of which is cold. Not used for the median."""
    other_load: float | None = None
    """Share of the processors' time that others took meanwhile, from 0 to 1."""
    rounds: tuple[int, ...] = ()
    """Number of the round in which each sample was taken: what stands in the same round was taken
    within moments. Below 0, or missing, where it was taken in none."""
    timed: Timed = ALONE
    other_bytes: int | None = None
    """Of the accelerator's memory what other programs held meanwhile, at the most; None where
    the device doesn't say."""

    @property
    def total(self) -> float:
        """Seconds spent generating, warm-up included."""
        return math.fsum(self.samples) + math.fsum(self.warmup)


@dataclass(frozen=True)
class PictureQuality:
    """How near one picture is to the reference's picture of the same prompt and seed."""

    prompt: str
    seed: int
    psnr_db: float
    """Peak signal-to-noise ratio in decibels over 8-bit RGB; infinite for identical pictures."""
    ssim: float
    """Structural similarity, 1 for identical pictures."""
    flip: float | None = None
    """Mean FLIP error, 0 for identical pictures; None where it can't be computed."""


@dataclass(frozen=True, repr=False)
class Lora:
    """A LoRA that the pipeline of every recipe carries, the reference's too.

    What its file holds and how strongly it counts make it the same, not where the file lies.
    """

    file: str = field(compare=False)
    """As asked for."""
    weight: float
    """Scale of what it adds: 1 is as it was trained."""
    digest: str
    """Of the file's content."""

    @property
    def text(self) -> str:
        """As `compare` and ``--lora`` take it."""
        return self.file if self.weight == 1 else f"{self.file}={self.weight}"

    def __repr__(self) -> str:
        return f"{self.text!r} (content {self.digest[:8]})"


@dataclass(frozen=True)
class Workload:
    """What every recipe of a comparison has to do."""

    model: str
    """As asked for: ``demo``, a folder or a Hub id."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float | None
    """Guidance scale; None leaves it to the pipeline."""
    size: tuple[int, int]
    """Width and height in pixels."""
    dtype: str
    """Compute dtype: ``bfloat16``, ``float16`` or ``float32``."""
    device: str
    repeats: int
    revision: str | None = None
    """Commit of a Hub model; None for folders."""
    variant: str | None = None
    """Variant of the weights that was asked for; None leaves it to what is there."""
    lora: Lora | None = field(default=None, metadata=LATER)
    frames: int | None = field(default=None, metadata=LATER)
    """Of each video; None for pictures."""

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """Every (prompt, seed), prompts outermost: the rows of the image grid."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)


@dataclass(frozen=True)
class ModelContent:
    """What a model's files held when its trials ran."""

    commit: str | None = None
    """Commit of a Hub model, which stands for its files; None for folders."""
    files: dict[str, str] = field(default_factory=dict)
    """Digest of each file of configuration, words and weights, by its path in the folder."""


@dataclass(frozen=True)
class Conditions:
    """Where a trial ran: what must agree before two figures may be compared."""

    device_name: str
    threads: int
    """Threads that torch uses inside one operation on the CPU."""
    platform: str
    python: str
    torch: str
    diffusers: str
    transformers: str
    quanto: str
    peak_method: str | None = None
    """How the memory peak was read; None if it could not be."""


@dataclass(frozen=True)
class Trial:
    """One recipe, run on one workload under recorded conditions."""

    recipe: Recipe
    status: Status = ASKED
    reason: str | None = None
    """Why it failed or is unsupported, one sentence."""
    compiled: bool = False
    weight_bytes: int | None = None
    predicted_weight_bytes: int | None = None
    file_bytes: int | None = None
    peak_bytes: int | None = None
    load_seconds: float | None = None
    """Reading the weights, quantizing them and putting them on the device."""
    compile_seconds: float | None = None
    """What the first, compiling generation took longer than a steady one."""
    timing: Timing | None = None
    quality: tuple[PictureQuality, ...] = ()
    kept_layers: tuple[str, ...] = ()
    """Full paths of the Linear layers left unquantized, component first."""
    notes: tuple[str, ...] = ()
    """What the reader of the figures should know: cures applied, layers kept and why."""
    conditions: Conditions | None = None
    components: tuple[str, ...] = ()
    """Names of the pipeline's parts that were quantized, the default one too."""
    private_bytes: int | None = None
    """What its process held beyond its state before loading, libraries and mapped files apart."""
    reserved_bytes: int | None = None
    """What the allocator had taken from the accelerator at most while pictures were made."""
    load_peak_bytes: int | None = None
    """The most that tensors took on the accelerator while it was loaded and quantized."""
    offload: str | None = None
    """How it was on an accelerator: ``none`` (all of it), ``model``, ``group``, ``sequential``."""
    tiled: bool = False
    """Whether its VAE decoded in tiles."""
    free_before_bytes: int | None = None
    """What was free on the accelerator before it was loaded."""
    picture_size: tuple[int, int] | None = None
    """Width and height that the pictures have, whatever was asked for."""
    encoded: WhenEncoded | None = None
    """None in runs of before this was kept."""
    backend_version: str | None = field(default=None, metadata=LATER)
    """Of the library whose code quantized it; several where components have several."""
    kernel: str | None = field(default=None, metadata=LATER)
    """What multiplies by the quantized weights, in words."""
    judged_by: str | None = field(default=None, metadata=LATER)
    """Whose pictures its own were judged against: the label of a trial of the run, or the folder
    of another. Earlier runs didn't keep it: there it is the unquantized trial."""
    timed_on: Conditions | None = field(default=None, metadata=LATER)
    """Under which conditions it was timed, where its pictures were made under others."""

    @property
    def timed_under(self) -> Conditions | None:
        """Conditions that its seconds hold for; None where they weren't kept."""
        return self.timed_on or self.conditions

    @property
    def label(self) -> str:
        """Short name, unique inside a comparison."""
        return self.recipe.label + (" compiled" if self.compiled else "")

    @property
    def earlier_label(self) -> str | None:
        """What 0.1.0 called it and its pictures' folder; None for what it didn't know."""
        label = self.recipe.earlier_label
        return None if label is None else label + (" compiled" if self.compiled else "")

    @property
    def name(self) -> str | None:
        """What its recipe is called, if it has a name."""
        name = self.recipe.name
        return None if name is None else name + (" compiled" if self.compiled else "")

    @property
    def ok(self) -> bool:
        """Whether it ended with pictures and figures."""
        return self.status == OK

    @property
    def resident(self) -> bool:
        """Whether all of it was where it ran: only then its seconds say something of others'."""
        return self.offload in (None, "none")

    def _repr_html_(self) -> str | None:
        view = _VIEWS.get("trial_html")
        return view(self) if view else None


def speed_reference(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial that speed is told against.

    The reference; where that was offloaded or couldn't be had, the most precise that was timed
    whole. None without a reference: nobody asked for one.
    """
    eager = [trial for trial in trials if not trial.compiled]
    reference = next((trial for trial in eager if trial.recipe.is_reference), None)
    if reference is None or (reference.ok and reference.resident):
        return reference
    return _most_precise(trial for trial in eager if trial.ok and trial.resident)


def picture_reference(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial of a run that pictures are judged against.

    The reference; where that was asked for and couldn't be had, the most precise that could. None
    if nobody asked for a reference, or nothing ended well.
    """
    eager = [trial for trial in trials if not trial.compiled]
    reference = next((trial for trial in eager if trial.recipe.is_reference), None)
    if reference is None or reference.ok:
        return reference
    return _most_precise(trial for trial in eager if trial.ok)


def _most_precise(trials: Iterable[Trial]) -> Trial | None:
    return max(trials, key=lambda trial: trial.weight_bytes or 0, default=None)


def ended(trial: Trial, error: Exception, step: str = "") -> Trial:
    """Return a trial that didn't end well, with the reason, and the step if it isn't its own."""
    said = str(error) if isinstance(error, QuantolabError) else with_kind(error)
    status = UNSUPPORTED if isinstance(error, UnsupportedError) else FAILED
    return dataclasses.replace(trial, status=status, reason=f"{step}: {said}" if step else said)


BORROWED = "reference"
"""In place of a label: where `Comparison.images` has the pictures of another run. No recipe's
text reads so."""


@dataclass(frozen=True)
class Borrowed:
    """Unquantized pictures of another run, which those of this one are judged against."""

    folder: str
    """Where they were read, as asked for; the run keeps a copy."""
    dtype: str
    device: str
    conditions: Conditions | None
    digest: str
    """Of the pictures, and of what they show."""


class Pictures(dict[tuple[str, str, int], "Image.Image"]):
    """Pictures by (trial label, prompt, seed); one that isn't there is missed with a sentence.

    Labels of 0.1.0 are understood too.
    """

    def __missing__(self, key: object) -> Image.Image:
        if isinstance(key, tuple) and len(key) == 3 and isinstance(key[0], str):
            core = key[0].removesuffix(" compiled")
            try:
                label = Recipe.parse(core).label + key[0][len(core) :]
            except ArgumentError:
                label = key[0]
            if label != key[0] and (label, *key[1:]) in self:
                return self[(label, *key[1:])]
        if not self:
            raise KeyError(f"there is no picture {key!r}: this comparison holds none")
        some = format_list([repr(known) for known in list(self)[:2]], "or")
        raise KeyError(f"there is no picture {key!r}; a key is (recipe, prompt, seed), as {some}")


_VIEWS: dict[str, Callable[[Any], Any]] = {}  # filled by `quantolab.report`, as it is imported


def show_by(**views: Callable[[Any], Any]) -> None:
    """Say how records are shown: what `Comparison.table` and its like call.

    Records are known to every room, and know none: the room that shows them tells them so.

    Parameters
    ----------
    **views : callable
        By name; each takes the record.
    """
    _VIEWS.update(views)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several recipes on the same workload. What `compare` returns and `load_comparison` reads."""

    workload: Workload
    trials: tuple[Trial, ...]
    images: dict[tuple[str, str, int], Image.Image] = field(default_factory=dict, repr=False)
    """Pictures by (trial label, prompt, seed)."""
    wall_seconds: float | None = None
    """The whole comparison as the user waited for it; with `--resume`, all its parts."""
    folder: str | None = None
    """Where it is kept, if it was asked to be."""
    content: ModelContent | None = None
    """What the model's files held; None if that was never looked at."""
    notes: tuple[str, ...] = ()
    """What the reader should know of the run as a whole."""
    floor: tuple[PictureQuality, ...] = ()
    """The noise floor: how near the reference's own pictures are when they are made once more with
    the same sums in another order. Empty where that wasn't measured."""
    borrowed: Borrowed | None = None
    """Of another run, where its pictures are the reference's: among `images` as `BORROWED`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", Pictures(self.images))

    def __repr__(self) -> str:
        ended = ", ".join(f"{trial.label} {trial.status}" for trial in self.trials)
        each = format_count(len(self.workload.pairs), "picture")
        return f"<Comparison of {self.workload.model}, {each} a recipe: {ended or 'no trials'}>"

    def _repr_html_(self) -> str | None:
        view = _VIEWS.get("comparison_html")
        return view(self) if view else None

    @property
    def table(self) -> pd.DataFrame:
        """What `results_table` gives, all columns of it; shown are those that decide."""
        return _VIEWS["table"](self)

    def grid(self) -> Figure:
        """Return what `image_grid` gives."""
        return _VIEWS["grid"](self)

    @property
    def reference(self) -> Trial | None:
        """The unquantized, eager trial, if it ended well."""
        for trial in self.trials:
            if trial.recipe.is_reference and not trial.compiled and trial.ok:
                return trial
        return None

    @cached_property  # a table asks for each of its rows
    def judge(self) -> str | None:
        """Label under which `images` has what the others are judged against; None if nothing."""
        if self.borrowed is not None:
            return BORROWED
        trial = picture_reference(self.trials)
        return None if trial is None else trial.label

    @property
    def generation_seconds(self) -> float:
        """Seconds spent making pictures, summed over the trials."""
        return math.fsum(t.timing.total for t in self.trials if t.timing is not None)

    @property
    def overhead(self) -> float | None:
        """Wall time over the time spent making pictures; None before anything was made."""
        if not self.wall_seconds or not self.generation_seconds:
            return None
        return self.wall_seconds / self.generation_seconds
