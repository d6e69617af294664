"""What each layer is worth: bytes saved by quantizing it, error of the output caused by it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Seconds, public
from ..backends import layer_bytes
from ..errors import ArgumentError, one_of, whole_number
from ..hub.watching import watching
from ..models.source import DEMO
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe, as_recipe
from ..run.asked import check_request
from ..run.session import Watch
from ..shapes import Layer
from ..weights import QUANTIZED, REFERENCE
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
)
"""Of models that bring none: different enough that layers matter for different reasons."""


_COLUMNS = (
    "component", "path", "weights", "layers", "parameters",
    "bytes_none", "bytes_quantized", "saved_bytes", "weight_error", "output_error",
    "output_floor", "below_floor", "errors_by_input", "inputs",
    "model", "device", "device_name", "threads", "compute_dtype", "prompt", "seed", "steps",
    "size", "torch", "diffusers", "quanto",
)  # fmt: skip
_SEEN = (
    "inputs", "output_floor", "device_name", "threads", "torch", "diffusers", "quanto",
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
        )
    looked_at = whole_number("inputs", inputs)
    options = {"watch": watch, "cancel": cancel, "stall_seconds": stall_seconds}
    with LayerErrors(request, component, looked_at, **options) as measuring:
        layers = measuring.layers(chosen)
        return measured_table(measuring, {measuring.component: (chosen, layers)}, groups, out)


def prompts_of(model: object, prompt: str | Iterable[str] | None) -> Any:
    """Return the prompts to look at: those that are asked for, the model's own, or several."""
    return PROMPTS if prompt is None and model not in (None, DEMO) else prompt


def measured_table(
    measuring: LayerErrors,
    asked: Mapping[str, tuple[Sequence[Recipe], Sequence[Sequence[Layer]]]],
    groups: str,
    out: str | os.PathLike | None,
) -> pandas.DataFrame:
    """Return the table of some components: of each its recipes, and the layers of each recipe."""
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
    errors = measuring.measure(sets, None if out is None else Path(out))
    return _table(sets, errors, measuring)


def _of_component(recipes, component: str | None) -> tuple[Recipe, ...]:
    """Return recipes for one component alone; the reference has nothing to measure."""
    single = isinstance(recipes, (str, Recipe))
    chosen = [as_recipe(recipe) for recipe in ((recipes,) if single else recipes)]
    names = (component,) if component else ()
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


def block_of(path: str) -> str:
    """Return the repeated block that a layer lies in, or the outermost container, or itself.

    Examples
    --------
    >>> block_of("transformer_blocks.3.attn.to_q"), block_of("norm_out.linear")
    ('transformer_blocks.3', 'norm_out')
    """
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def _table(
    sets: Sequence[NamedSet], errors: Sequence[SetError], measuring: LayerErrors
) -> pandas.DataFrame:
    import pandas as pd

    request, seen = measuring.request, measuring.seen
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
