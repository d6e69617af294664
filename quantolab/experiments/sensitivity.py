"""What each layer is worth: bytes saved by quantizing it, error of the output caused by it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Seconds, public
from ..backends import layer_bytes
from ..demo import VARIED
from ..errors import ArgumentError, one_of, whole_number
from ..hub.watching import watching
from ..models.source import DEMO
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe, as_recipe, weights_only
from ..run.asked import check_request
from ..run.session import Watch
from ..shapes import Layer, block_of
from ..weights import QUANTIZED, REFERENCE, weights_of
from .jobs import SetError
from .layer_errors import LayerErrors, NamedSet, Seen

if TYPE_CHECKING:
    import pandas

GROUPS = ("layers", "blocks")

INPUTS = 8
"""Calls of a denoiser that are looked at, unless others are asked for."""

PROMPTS = (
    "a photograph of a red fox in a snowy forest, detailed fur, morning light",
    "a watercolour of a harbour with fishing boats under a cloudy sky",
    "a portrait of an old man with a beard, studio light",
    "a poster with the word QUANTUM in large blue letters",
    "a bowl of oranges and grapes on a wooden table, still life in oil",
    "a street in Tokyo at night, neon signs, rain, reflections",
    "a line drawing of a bicycle on white paper",
    "an astronaut riding a horse on the moon, wide shot",
    "a close-up of a dew drop on a green leaf, macro photograph",
    "two children building a sandcastle on a beach, cartoon",
    "an aerial view of fields and a winding river in autumn",
    "a steam locomotive on a stone bridge, black and white photograph",
)
"""Of models that bring none: different enough that layers matter for different reasons."""


_COLUMNS = (
    "component", "path", "weights", "layers", "parameters",
    "bytes_none", "bytes_quantized", "saved_bytes", "weight_error", "output_error",
    "output_floor", "below_floor", "errors_by_input", "inputs",
    "model", "device", "device_name", "threads", "compute_dtype", "prompt", "seed", "steps",
    "size", "torch", "diffusers", "quanto", "pictures",
)  # fmt: skip
_SEEN = (
    "inputs", "output_floor", "device_name", "threads", "torch", "diffusers", "quanto", "pictures",
)  # fmt: skip


@public
def sensitivity(
    model: str | os.PathLike | None = None,
    recipes: Iterable[Recipe | str] | Recipe | str | None = None,
    *,
    component: str | None = None,
    groups: str = "layers",
    inputs: int = INPUTS,
    prompt: str | Iterable[str] | None = None,
    seed: int | Iterable[int] = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    out: str | os.PathLike | None = None,
    watch: Watch | None = None,
    cancel: threading.Event | None = None,
    stall_seconds: Seconds = STALL_SECONDS,
    variant: str | None = None,
    revision: str | None = None,
    frames: int | None = None,
) -> pandas.DataFrame:
    """Return what quantizing each layer of a component saves, and the error that it causes.

    The component is loaded unquantized, in a process of its own, and runs on inputs that it gets
    while a picture is made. Then one layer (or block) after the other is quantized, the component
    runs on the same inputs, and the layer is put back.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (the default), a folder in Diffusers layout, or a Hub id.
    recipes : iterable of Recipe or str, optional
        Weights dtypes; by default all four. Layers that a recipe skips have no row for it.
    component : str, optional
        ``"transformer"``, ``"text_encoder_2"``, ...; by default the denoiser.
    groups : str
        ``"layers"``: a row a Linear layer. ``"blocks"``: a row a repeated block
        (``transformer_blocks.3``) and one for each container outside them; with large models
        that is much quicker.
    inputs : int
        How many calls of the denoiser to look at, spread over the steps and dealt over prompts
        and seeds. (A text encoder is called once a prompt.)
    prompt, seed : str or iterable of str, int or iterable of int
        Of the pictures; by default several prompts.
    steps, guidance, size, dtype, device
        As for `compare`.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.
    frames : int, optional
        Of each video, as for `compare`.
    out : path, optional
        File to which each result is added as soon as it is there. The same call with the same
        file goes on where an earlier one was ended.
    watch, cancel, stall_seconds
        As for `compare`; each set of layers counts as a picture.

    Returns
    -------
    pandas.DataFrame
        A row a weights dtype and layer (or block). ``path``, which works as a skip pattern;
        ``layers, parameters`` in it; ``bytes_none, bytes_quantized, saved_bytes``;
        ``weight_error``, relative L2 error of its weights; ``output_error``, relative L2 error
        of the component's first output with only this quantized (infinite if that is no number
        any more), over all ``inputs`` looked at, and ``errors_by_input`` for each;
        ``output_floor``, the error that rounding alone makes (the sums of all layers in another
        order), below which nothing can be told (``below_floor``: such layers are equal); and the
        conditions.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If the request can't be run.
    Cancelled
        If `cancel` was set.

    Examples
    --------
    >>> table = sensitivity("demo", ["int4"], groups="blocks")
    >>> table.sort_values("output_error").path.tolist()[-1]
    'single_transformer_blocks.0'
    """
    one_of("groups", groups, GROUPS)
    words = QUANTIZED if recipes is None else recipes
    chosen = _of_component(words, component)
    with watching(cancel=cancel):
        request = check_request(
            model,
            chosen,
            prompts_of(model, prompt),
            seeds=seed,
            steps=steps,
            guidance=guidance,
            size=size,
            dtype=dtype,
            device=device,
            repeats=1,
            variant=variant,
            revision=revision,
            frames=frames,
        )
    looked_at = whole_number("inputs", inputs)
    options = {"watch": watch, "cancel": cancel, "stall_seconds": stall_seconds}
    place = None if out is None else Path(out)
    with LayerErrors(request, component, looked_at, out=place, **options) as measuring:
        layers = measuring.layers(chosen)
        return measured_table(measuring, {measuring.component: (chosen, layers)}, groups)


def prompts_of(model: object, prompt: str | Iterable[str] | None) -> Any:
    """Return the prompts to look at: those that are asked for, or several of the model's kind."""
    if prompt is not None:
        return prompt
    return VARIED if model in (None, DEMO) else PROMPTS


def measured_table(
    measuring: LayerErrors,
    asked: Mapping[str, tuple[Sequence[Recipe], Sequence[Sequence[Layer]]]],
    groups: str,
    pictures: int = 0,
) -> pandas.DataFrame:
    """Return the table of some components: of each its recipes, and the layers of each recipe.

    With pictures, errors are theirs; of several words only those of few bits are looked at, the
    errors of finer ones, which rounding hides, are told from them by the errors of their weights.
    What these do to single calls stands in a column of its own, ``call_error``.
    """
    sets = [
        NamedSet(
            recipe.words[0],
            path,
            members,
            component="" if name == measuring.component else name,
        )
        for name, (recipes, layers) in asked.items()
        for recipe, found in zip(recipes, layers, strict=True)
        for path, members in grouped(found, groups).items()
    ]
    if not pictures:
        return _table(sets, measuring.measure(sets), measuring)
    shown = in_pictures(entry.weights for entry in sets)
    coarse = [entry for entry in sets if entry.weights in shown]
    fine = [entry for entry in sets if entry.weights not in shown]
    calls = measuring.measure(fine)
    errors = dict(zip(coarse, measuring.measure(coarse, pictures), strict=True))
    floor = measuring.seen(pictures).output_floor
    told = {
        entry: _finer(error, [errors[c] for c in coarse if _same_place(c, entry)], floor)
        for entry, error in zip(fine, calls, strict=True)
    }
    every = errors | told
    table = _table(sets, [every[entry] for entry in sets], measuring, pictures)
    by_call = dict(zip(fine, calls, strict=True))
    table["call_error"] = [by_call.get(entry, every[entry]).output_error for entry in sets]
    return table


def in_pictures(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words whose errors show in pictures: those of few bits, all where none is."""
    every = tuple(dict.fromkeys(words))
    return tuple(word for word in every if weights_of(word).is_packed) or every


def _same_place(one: NamedSet, other: NamedSet) -> bool:
    return (one.component, one.path) == (other.component, other.path)


def _finer(own: SetError, coarser: Sequence[SetError], floor: float) -> SetError:
    """Return the errors of a fine word, told from the finest coarse one that shows any."""
    by_error = sorted(coarser, key=lambda error: error.output_error)
    shown = [e for e in by_error if e.output_error > 2 * floor and e.weight_error > 0]
    nearest = (shown or by_error[-1:] or [own])[0]
    share = own.weight_error / nearest.weight_error if nearest.weight_error > 0 else 1.0

    def told(error: float) -> float:
        return math.sqrt(share**2 * max(0.0, error**2 - floor**2) + floor**2)

    return SetError(
        own.weight_error, told(nearest.output_error), tuple(map(told, nearest.by_input))
    )


def _of_component(recipes, component: str | None) -> tuple[Recipe, ...]:
    """Return recipes for one component alone; the reference has nothing to measure."""
    single = isinstance(recipes, (str, Recipe))
    chosen = [as_recipe(recipe) for recipe in ((recipes,) if single else recipes)]
    names = (component,) if component else ()
    weights_only(chosen, "sensitivity")
    chosen = [recipe for recipe in chosen if not recipe.is_reference]
    if not chosen:
        raise ArgumentError(f"recipes names nothing to quantize; allowed: {', '.join(QUANTIZED)}")
    if mixed := [recipe for recipe in chosen if len(recipe.words) > 1]:
        raise ArgumentError(
            f"the recipe '{mixed[0]}' has several words; here each has one, {mixed[0].words[0]!r} "
            "for example, and skips"
        )
    found = tuple(Recipe(recipe.words[0], recipe.kept, names) for recipe in chosen)
    twice = [r.words[0] for r in found if [f.words for f in found].count(r.words) > 1]
    if twice:
        raise ArgumentError(f"{twice[0]} is asked for more than once")
    return found


def grouped(layers: Sequence[Layer], groups: str) -> dict[str, tuple[Layer, ...]]:
    """Return layers by the name of their group."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        name = layer.path if groups == "layers" else block_of(layer.path)
        found.setdefault(name, []).append(layer)
    return {name: tuple(members) for name, members in found.items()}


def _table(
    sets: Sequence[NamedSet],
    errors: Sequence[SetError],
    measuring: LayerErrors,
    pictures: int = 0,
) -> pandas.DataFrame:
    import pandas as pd

    request, seen = measuring.request, measuring.seen(pictures)
    workload = request.workload
    common = {
        "model": request.source.model,
        "device": workload.device,
        "compute_dtype": workload.dtype,
        "prompt": " | ".join(workload.prompts),
        "seed": ", ".join(map(str, workload.seeds)),
        "steps": workload.steps,
        "size": "x".join(map(str, workload.size)),
        **{name: getattr(seen, name) for name in _SEEN},
    }
    rows = [
        {
            "component": entry.component or measuring.component,
            **common,
            **_bytes(entry, workload.dtype),
            **_figures(error, seen),
        }
        for entry, error in zip(sets, errors, strict=True)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _figures(error: SetError, seen: Seen) -> dict:
    return {
        "weight_error": error.weight_error,
        "output_error": error.output_error,
        "below_floor": error.output_error <= seen.output_floor,
        "errors_by_input": error.by_input,
    }


def _bytes(entry: NamedSet, dtype: str) -> dict:
    before = sum(layer_bytes(layer, REFERENCE, dtype) for layer in entry.layers)
    after = sum(layer_bytes(layer, entry.weights, dtype) for layer in entry.layers)
    return {
        "path": entry.path,
        "weights": entry.weights,
        "layers": len(entry.layers),
        "parameters": sum(layer.parameters for layer in entry.layers),
        "bytes_none": before,
        "bytes_quantized": after,
        "saved_bytes": before - after,
    }
