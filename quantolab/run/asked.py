"""What a comparison is asked to do, checked as far as that needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends import check_installed
from ..devices import check_device
from ..errors import ArgumentError, one_of, whole_number
from ..measure.frames import MOST_FRAMES
from ..models.resolving import components_of
from ..models.source import Source, check_size, default_size, find_model
from ..models.unquantized import check_unquantized
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..records import Trial, Workload
from ..weights import WORDS
from . import REPEATS
from .borrowing import Reference, find_reference
from .carrying import AskedLora, find_lora
from .ways import check_offload

_DEFAULT_STEPS = 28
_GREATEST_SEED = 2**63 - 1  # that torch's generators take on every device
MOST = 10_000
"""Steps, repeats or rounds: beyond it is a slip of the finger."""
_DEFAULT_PROMPT = "a photograph of a red fox in a snowy forest, detailed fur, morning light"


@dataclass(frozen=True)
class Request:
    """What `compare` was asked for, checked as far as that needs no torch."""

    source: Source
    recipes: tuple[Recipe, ...]
    workload: Workload
    compiled: bool
    offload: str | None = None
    """How recipes get onto an accelerator; None leaves it to the plan."""
    reference: Reference | None = None
    """Another run, whose unquantized pictures the others are judged against."""
    lora: Path | None = None
    """File of the workload's LoRA, wherever the current folder is."""
    also: tuple[str, ...] = ()
    """Components whose bytes are counted too: those of a run that is gone on with."""

    @property
    def components(self) -> tuple[str, ...]:
        """Components whose bytes are counted: all that any recipe quantizes."""
        own = counted_components(self.recipes, self.source)
        return tuple(dict.fromkeys((*self.also, *own)))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials that this asks for, none ended yet, in the order of the table."""
        ways = (False, True) if self.compiled else (False,)
        return tuple(
            Trial(recipe, compiled=compiled) for recipe in self.recipes for compiled in ways
        )


def counted_components(recipes: Iterable[Recipe], source: Source) -> tuple[str, ...]:
    """Return the components that any of some recipes quantizes, the denoiser if none says."""
    names = [n for recipe in recipes for n in components_of(recipe, source)]
    if not names or any(name in names for name in source.denoisers):  # these come first
        names = [*source.default_components, *names]
    return tuple(dict.fromkeys(names))


def check_request(
    model: Source | str | os.PathLike[str] | None = None,
    recipes: Iterable[Recipe | str] | None = None,
    prompts: Iterable[str] | str | None = None,
    *,
    seeds: Iterable[int] | int = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = REPEATS,
    compile: bool = False,
    offload: str | None = None,
    reference: str | os.PathLike[str] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    lora: AskedLora | None = None,
    frames: int | None = None,
) -> Request:
    """Return the request that these arguments make; see `compare` for each.

    A model that was found already is taken as it is, so that a form can check what is typed into it
    without looking a Hub model up, let alone downloading it, at each change.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If it can't be run.
    """
    source = (
        model
        if isinstance(model, Source)
        else find_model(model, variant=variant, revision=revision)
    )
    if source.pipeline is None:
        raise ArgumentError(
            f"{source.model!r} is one component, not a pipeline (it has no model_index.json), so "
            "it makes no pictures to compare; load and quantize work on it"
        )
    for part in source.components:
        check_unquantized(part)
    chosen = tuple(as_recipe(r) for r in (WORDS if recipes is None else _many(recipes, Recipe)))
    if not chosen:
        raise ArgumentError("recipes is empty; at least one is needed")
    twice = [r.label for r in chosen if chosen.count(r) > 1]
    if twice:
        raise ArgumentError(f"the recipe '{twice[0]}' is asked for more than once")
    for recipe in chosen:
        components_of(recipe, source)  # refuses names that the model hasn't
        check_installed(recipe.words)
    is_demo = source.model == "demo"
    carried, path = (None, None) if lora is None else find_lora(lora)
    workload = Workload(
        model=source.model,
        prompts=_prompts(prompts, is_demo),
        seeds=_seeds(seeds),
        steps=_steps(steps, is_demo),
        guidance=_guidance(guidance),
        size=_size(source, size),
        dtype=one_of("compute dtype", dtype, COMPUTE_DTYPES),
        device=device,
        repeats=whole_number("repeats", repeats, most=MOST),
        revision=source.revision,
        variant=source.asked_variant,
        lora=carried,
        frames=None if frames is None else whole_number("frames", frames, most=MOST_FRAMES),
    )
    check_device(device)
    offload = check_offload(offload, device)
    other = None if reference is None else find_reference(reference, workload)
    return Request(source, chosen, workload, bool(compile), offload, other, path)


def _many(value: Any, single: type) -> tuple[Any, ...]:
    return (value,) if isinstance(value, (str, single)) else tuple(value)


def _prompts(prompts: Iterable[str] | str | None, is_demo: bool) -> tuple[str, ...]:
    if prompts is None:
        if is_demo:
            from ..demo import PROMPTS

            return PROMPTS
        return (_DEFAULT_PROMPT,)
    chosen = tuple(dict.fromkeys(_many(prompts, str)))
    if not chosen or not all(isinstance(p, str) and p.strip() for p in chosen):
        raise ArgumentError(f"prompts must be one or more texts, not {prompts!r}")
    return chosen


def _seeds(seeds: Iterable[int] | int) -> tuple[int, ...]:
    chosen = tuple(dict.fromkeys(_many(seeds, int)))
    if not chosen:
        raise ArgumentError("seeds is empty; at least one whole number is needed")
    return tuple(whole_number("seed", seed, least=0, most=_GREATEST_SEED) for seed in chosen)


def _steps(steps: int | None, is_demo: bool) -> int:
    if steps is None:
        if is_demo:
            from ..demo import STEPS

            return STEPS
        return _DEFAULT_STEPS
    return whole_number("steps", steps, most=MOST)


def _guidance(guidance: float | None) -> float | None:
    if guidance is None:
        return None
    if isinstance(guidance, (int, float)) and 0 <= guidance < float("inf"):
        return float(guidance)
    raise ArgumentError(f"guidance must be a number of 0 or more, not {guidance!r}")


def _size(source: Source, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        size = default_size(source)
        if size is None:
            raise ArgumentError(
                f"the files of {source.model!r} don't say which size it was made for: give one"
            )
    return check_size(source, size)
