"""Recipes times a workload become trials: one child process each, told as events.

Nothing here draws, prints or knows who watches. torch is never imported in this process.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import errors
from ..errors import ArgumentError, QuantolabError, one_of, whole_number
from ..models.source import Source, check_size, default_size, find_model
from ..recipes import COMPUTE_DTYPES, REFERENCE, WEIGHTS, Recipe, as_recipe
from ..records import FAILED, OK, UNSUPPORTED, Comparison, Conditions, Timing, Trial, Workload
from .children import STALL_SECONDS, Cancelled, Children, JobFailed
from .journal import Journal, check_folder, picture_path

if TYPE_CHECKING:
    from PIL import Image

_DEFAULT_STEPS = 28
_DEFAULT_PROMPT = "a photograph of a red fox in a snowy forest, detailed fur, morning light"


@dataclass(frozen=True)
class Progress:
    """One event of a comparison, for whoever watches."""

    stage: str
    """``starting``, ``planning``, ``encoding prompts``, ``loading``, ``making the pictures``,
    ``timing``, ``finished``."""
    label: str | None
    """Label of the trial that is running; None outside trials."""
    done: int
    """Pictures made so far, timed ones included."""
    total: int
    """Pictures that the whole comparison makes."""
    elapsed_seconds: float
    eta_seconds: float | None
    """Seconds to go, once there is something to judge by."""
    trial: Trial | None = None
    """The trial that has just ended, if one has."""


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Request:
    """What `compare` was asked for, checked as far as that needs no torch."""

    source: Source
    recipes: tuple[Recipe, ...]
    workload: Workload
    compiled: bool

    @property
    def components(self) -> tuple[str, ...]:
        """Components whose bytes are counted: all that any recipe quantizes."""
        names = [n for recipe in self.recipes for n in recipe.components]
        if not names or any(not r.components for r in self.recipes if not r.is_reference):
            names.insert(0, self.source.denoiser)
        return tuple(dict.fromkeys(names))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials that this asks for, none tried yet, in the order of the table."""
        ways = (False, True) if self.compiled else (False,)
        return tuple(
            Trial(recipe, FAILED, "not run yet", compiled=compiled)
            for recipe in self.recipes
            for compiled in ways
        )


def check_request(
    model=None,
    recipes: Iterable[Recipe | str] | None = None,
    prompts: Iterable[str] | str | None = None,
    *,
    seeds: Iterable[int] | int = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = 5,
    compile: bool = False,
) -> Request:
    """Return the request that these arguments make; see `compare` for each.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If it can't be run.
    """
    source = find_model(model)
    if source.pipeline is None:
        raise ArgumentError(
            f"{source.model!r} is one component, not a pipeline (it has no model_index.json), so "
            "it makes no pictures to compare; load and quantize work on it"
        )
    chosen = tuple(as_recipe(r) for r in (WEIGHTS if recipes is None else _many(recipes, Recipe)))
    if not chosen:
        raise ArgumentError("recipes is empty; at least one is needed")
    twice = [r.label for r in chosen if chosen.count(r) > 1]
    if twice:
        raise ArgumentError(f"the recipe '{twice[0]}' is asked for more than once")
    for recipe in chosen:
        for name in recipe.components:
            source.component(name)
    is_demo = source.model == "demo"
    workload = Workload(
        model=source.model,
        prompts=_prompts(prompts, is_demo),
        seeds=_seeds(seeds),
        steps=_steps(steps, is_demo),
        guidance=_guidance(guidance),
        size=_size(source, size),
        dtype=one_of("compute dtype", dtype, COMPUTE_DTYPES),
        device=device,
        repeats=whole_number("repeats", repeats),
        revision=source.revision,
    )
    _check_device_word(device)
    return Request(source, chosen, workload, bool(compile))


def run_comparison(
    request: Request,
    *,
    out=None,
    resume: bool = False,
    watch: Watch = lambda progress: None,
    cancel: threading.Event | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> Comparison:
    """Run a checked request and return what came of it; see `compare`.

    Raises
    ------
    Cancelled
        If `cancel` was set; finished trials are in the folder, if one was named.
    """
    if resume and out is None:
        raise ArgumentError("resume needs the folder (out) of the run to finish")
    temporary = None
    if out is not None:
        check_folder(out, resume=resume)
    else:
        temporary = out = tempfile.mkdtemp(prefix="quantolab-")
    try:
        run = _Run(request, out, resume, watch, cancel, stall_seconds)
        return run.all(keep_folder=temporary is None)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


class _Run:
    """One comparison while it runs."""

    def __init__(self, request, out, resume, watch, cancel, stall_seconds) -> None:
        self._request: Request = request
        self._out, self._resume = out, resume
        self._watch: Watch = watch
        self._cancel = cancel
        self._stall_seconds = stall_seconds
        self._started = time.monotonic()
        self._pictures_each = len(request.workload.pairs) + request.workload.repeats
        self._done = 0
        self._first_picture: float | None = None
        self._since_done = 0
        self._total = self._pictures_each * len(request.trials)
        self._label: str | None = None
        self._stage = "starting"

    def all(self, keep_folder: bool) -> Comparison:
        self._tell()
        classes = [("diffusers", self._request.source.pipeline)]
        classes += [(c.library, c.cls) for c in self._request.source.components]
        with (
            Children(classes) as children,
            tempfile.TemporaryDirectory(prefix="quantolab-plan-") as planning,
        ):
            self._children = children
            plans = self._plan(Path(planning))
            journal = Journal(
                self._out, self._request.workload, self._request.trials, resume=self._resume
            )
            try:
                journal.write(self._elapsed())
                self._trials(journal, plans)
                comparison = journal.write(self._elapsed())
                images = _read_pictures(comparison)
            finally:
                journal.close()
        self._label, self._stage = None, "finished"
        self._tell()
        folder = comparison.folder if keep_folder else None
        return dataclasses.replace(comparison, images=images, folder=folder)

    def _plan(self, folder: Path) -> dict[str, dict]:
        """Resolve device, layers and bytes in a child, so that this process stays light."""
        self._stage = "planning"
        self._tell()
        request = self._request
        plan = self._value(
            {
                "kind": "plan",
                "model": str(request.source.folder),
                "device": request.workload.device,
                "dtype": request.workload.dtype,
                "components": request.components,
                "recipes": [r.to_dict() for r in request.recipes],
            },
            folder,
        )
        workload = dataclasses.replace(request.workload, device=plan["device"])
        self._request = dataclasses.replace(request, workload=workload)
        return {r.label: p for r, p in zip(request.recipes, plan["plans"], strict=True)}

    def _trials(self, journal: Journal, plans: dict[str, dict]) -> None:
        # The reference first, whatever the order of the table: the others are judged against it.
        order = sorted(self._request.trials, key=lambda t: not t.recipe.is_reference)
        waiting = [t for t in order if journal.done(t.label) is None]
        self._done = self._pictures_each * (len(order) - len(waiting))
        encoded = self._encode(journal.work) if waiting else None
        for trial in waiting:
            self._label = trial.label
            work = journal.work / f"trial-{len(list(journal.work.iterdir()))}"
            before = self._done
            trial = self._trial(trial, plans[trial.recipe.label], encoded, work)
            if trial.ok:
                trial = self._judged(trial, work / "images", journal)
            self._done = before + self._pictures_each
            journal.add(trial, work / "images" if trial.ok else None, self._elapsed())
            shutil.rmtree(work, ignore_errors=True)
            self._tell(trial)

    def _encode(self, work: Path) -> Path | None:
        """Encode prompts once for all, unless some recipe has the text encoders as its business."""
        if any(name.startswith("text_encoder") for name in self._request.components):
            return None
        self._stage = "encoding prompts"
        self._tell()
        path = work / "prompts.safetensors"
        workload = self._request.workload
        value = self._value(
            {
                "kind": "encode",
                "model": str(self._request.source.folder),
                "prompts": workload.prompts,
                "dtype": workload.dtype,
                "device": workload.device,
                "encoded": str(path),
            },
            work / "encode",
        )
        return path if value["encoded"] else None

    def _trial(self, trial: Trial, plan: dict, encoded: Path | None, work: Path) -> Trial:
        workload = self._request.workload
        planned = dataclasses.replace(
            trial,
            reason=None,
            predicted_weight_bytes=plan["predicted_weight_bytes"],
            kept_layers=tuple(plan["kept_layers"]),
            components=tuple(plan["components"]),
        )
        request = {
            "kind": "trial",
            "model": str(self._request.source.folder),
            "recipe": trial.recipe.to_dict(),
            "components": self._request.components,
            "compiled": trial.compiled,
            "prompts": workload.prompts,
            "pairs": workload.pairs,
            "steps": workload.steps,
            "guidance": workload.guidance,
            "size": workload.size,
            "dtype": workload.dtype,
            "device": workload.device,
            "repeats": workload.repeats,
            "encoded": str(encoded) if encoded else None,
        }
        try:
            value = self._value(request, work)
        except Cancelled:
            raise
        except errors.UnsupportedError as error:
            return dataclasses.replace(planned, status=UNSUPPORTED, reason=str(error))
        except QuantolabError as error:
            return dataclasses.replace(planned, status=FAILED, reason=str(error))
        return dataclasses.replace(
            planned,
            status=OK,
            weight_bytes=value["weight_bytes"],
            file_bytes=value["file_bytes"],
            peak_bytes=value["peak_bytes"],
            load_seconds=value["load_seconds"],
            compile_seconds=value["compile_seconds"],
            timing=Timing(**{k: tuple(v) for k, v in value["timing"].items()}),
            notes=tuple(value["notes"]),
            conditions=Conditions(**value["conditions"]),
        )

    def _judged(self, trial: Trial, made: Path, journal: Journal) -> Trial:
        """Return the trial with the quality of its pictures against the reference's."""
        from PIL import Image

        from ..measure.quality import picture_quality
        from ..records import PictureQuality

        reference = journal.done(REFERENCE)
        if reference is None or not reference.ok or trial.label == REFERENCE:
            return trial
        quality = []
        for number, (prompt, seed) in enumerate(journal.workload.pairs):
            path = picture_path(journal.folder, REFERENCE, number, prompt, seed)
            with Image.open(path) as theirs, Image.open(made / f"{number:03d}.png") as ours:
                quality.append(PictureQuality(prompt, seed, *picture_quality(ours, theirs)))
        return dataclasses.replace(trial, quality=tuple(quality))

    def _value(self, request: dict, folder: Path) -> dict:
        """Run a job and return its value, or raise what it says."""
        result = self._children.run(
            request,
            folder=folder,
            watch=self._on_event,
            cancel=self._cancel,
            stall_seconds=self._stall_seconds,
        )
        if "error" not in result:
            return result["value"]
        kind = getattr(errors, result["error"], JobFailed)
        raise kind(result["message"])

    def _on_event(self, event: dict) -> None:
        if event["event"] == "stage":
            self._stage = event["stage"]
        elif event["event"] == "picture":
            self._done += 1
            if self._first_picture is None:
                self._first_picture = time.monotonic()
            else:
                self._since_done += 1
        self._tell()

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _tell(self, trial: Trial | None = None) -> None:
        eta = None
        if self._since_done and self._first_picture is not None:
            each = (time.monotonic() - self._first_picture) / self._since_done
            eta = max(0.0, each * (self._total - self._done))
        self._watch(
            Progress(self._stage, self._label, self._done, self._total, self._elapsed(), eta, trial)
        )


def _read_pictures(comparison: Comparison) -> dict[tuple[str, str, int], Image.Image]:
    from . import journal

    return journal.read(comparison.folder).images


def _many(value, single: type) -> tuple:
    return (value,) if isinstance(value, (str, single)) else tuple(value)


def _prompts(prompts, is_demo: bool) -> tuple[str, ...]:
    if prompts is None:
        if is_demo:
            from ..demo import PROMPTS

            return PROMPTS
        return (_DEFAULT_PROMPT,)
    chosen = tuple(dict.fromkeys(_many(prompts, str)))
    if not chosen or not all(isinstance(p, str) and p.strip() for p in chosen):
        raise ArgumentError(f"prompts must be one or more texts, not {prompts!r}")
    return chosen


def _seeds(seeds) -> tuple[int, ...]:
    chosen = tuple(dict.fromkeys(_many(seeds, int)))
    if not chosen:
        raise ArgumentError("seeds is empty; at least one whole number is needed")
    return tuple(whole_number("seed", seed, least=0) for seed in chosen)


def _steps(steps: int | None, is_demo: bool) -> int:
    if steps is None:
        if is_demo:
            from ..demo import STEPS

            return STEPS
        return _DEFAULT_STEPS
    return whole_number("steps", steps)


def _guidance(guidance: float | None) -> float | None:
    if guidance is None:
        return None
    if isinstance(guidance, (int, float)) and 0 <= guidance < float("inf"):
        return float(guidance)
    raise ArgumentError(f"guidance must be a number of 0 or more, not {guidance!r}")


def _size(source: Source, size) -> tuple[int, int]:
    if size is None:
        size = default_size(source)
        if size is None:
            raise ArgumentError(
                f"the files of {source.model!r} don't say which size it was made for: give one"
            )
    return check_size(source, size)


def _check_device_word(device: str) -> None:
    from ..devices import DEVICES

    one_of("device", str(device).partition(":")[0], DEVICES)
