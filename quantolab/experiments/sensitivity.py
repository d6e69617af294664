"""What each layer is worth: bytes saved by quantizing it, error of the output caused by it."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Seconds, public
from ..backends import layer_bytes
from ..errors import ArgumentError, one_of, whole_number
from ..hub.watching import watching
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe, as_recipe
from ..run.asked import check_request
from ..run.session import Watch
from ..shapes import Layer
from ..weights import QUANTIZED, REFERENCE
from .jobs import SetError
from .layer_errors import LayerErrors, NamedSet

if TYPE_CHECKING:
    import pandas

GROUPS = ("layers", "blocks")


_COLUMNS = (
    "component", "path", "weights", "layers", "parameters",
    "bytes_none", "bytes_quantized", "saved_bytes", "weight_error", "output_error",
    "output_floor", "inputs",
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
    inputs: int = 2,
    prompt: str | None = None,
    seed: int = 0,
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
        How many calls of the denoiser to look at, spread over the steps. (A text encoder is
        called once.)
    prompt, seed, steps, guidance, size, dtype, device
        As for `compare`; one picture's worth.
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
        any more), over all ``inputs`` looked at; ``output_floor``, the error that rounding alone
        makes (one layer's sums in another order; the median of some layers), below which
        nothing can be told; and the conditions.

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
            prompt,
            seeds=(seed,),
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
        sets = [
            NamedSet(recipe.weights, path, members)
            for recipe, found in zip(chosen, layers, strict=True)
            for path, members in _grouped(found, groups).items()
        ]
        errors = measuring.measure(sets, None if out is None else Path(out))
        return _table(sets, errors, measuring)


def _of_component(recipes, component: str | None) -> tuple[Recipe, ...]:
    """Return recipes for one component alone; the reference has nothing to measure."""
    single = isinstance(recipes, (str, Recipe))
    chosen = [as_recipe(recipe) for recipe in ((recipes,) if single else recipes)]
    names = (component,) if component else ()
    found = tuple(Recipe(r.weights, r.skip, names) for r in chosen if not r.is_reference)
    if not found:
        raise ArgumentError(f"recipes names nothing to quantize; allowed: {', '.join(QUANTIZED)}")
    twice = [r.weights for r in found if [f.weights for f in found].count(r.weights) > 1]
    if twice:
        raise ArgumentError(f"{twice[0]} is asked for more than once")
    return found


def _grouped(layers: Sequence[Layer], groups: str) -> dict[str, tuple[Layer, ...]]:
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
        "component": measuring.component,
        "model": request.source.model,
        "device": workload.device,
        "compute_dtype": workload.dtype,
        "prompt": workload.prompts[0],
        "seed": workload.seeds[0],
        "steps": workload.steps,
        "size": "x".join(map(str, workload.size)),
        **{name: getattr(seen, name) for name in _SEEN},
    }
    rows = [
        {**common, **_bytes(entry, workload.dtype), **dataclasses.asdict(error)}
        for entry, error in zip(sets, errors, strict=True)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


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
