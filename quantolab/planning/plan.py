"""What each part of a model will hold in each dtype, before anything is downloaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arguments import public
from ..backends import check_supported, layer_bytes, quantizing_bytes
from ..errors import (
    ArgumentError,
    BrokenModelError,
    QuantolabError,
    UnsupportedError,
    one_of,
    whole_number,
)
from ..files.json_objects import read_object
from ..files.whole import scratch_folder
from ..measure.frames import MOST_FRAMES
from ..models.layers import linear_layers
from ..models.resolving import (
    Resolved,
    Share,
    check_recipe,
    reference_share,
    resolve,
    share_of,
    shares_in,
)
from ..models.source import Component, Source, check_size, default_size, find_model
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..shapes import Layer
from ..units import format_bytes, parse_bytes
from ..weights import REFERENCE, WORDS
from .needs import Activations, Needs, needs, part_bytes
from .predict import bytes_by_module, predict_weight_bytes

if TYPE_CHECKING:
    import pandas
    import torch
    from diffusers import DiffusionPipeline

PIPELINE = "pipeline"
"""Stands in the column `component` of rows that sum up all parts."""

_COLUMNS = (
    "model", "component", "recipe", "weights", "quantized", "quantized_layers", "parameters",
    "weight_bytes", "load_peak_bytes", "fits", "compute_dtype",
    "size", "encode_bytes", "resident_bytes", "tiled_bytes", "model_offload_bytes",
    "group_offload_bytes", "sequential_offload_bytes", "compare_bytes", "compare_fits", "frames",
)  # fmt: skip

_READING = 1 << 21  # bytes of names, headers and modules while files are read

_NO_WEIGHTS = ("scheduler", "tokenizer", "feature_extractor", "processor", "image_processor")


@public
def plan(
    model: str | os.PathLike | DiffusionPipeline | None = None,
    recipes: Iterable[Recipe | str] | Recipe | str | None = None,
    *,
    components: Iterable[str] | str | None = None,
    dtype: str = "bfloat16",
    vram: int | float | str | None = None,
    size: tuple[int, int] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    frames: int | None = None,
) -> pandas.DataFrame:
    """Return predicted bytes of each component and recipe of a model that needn't be downloaded.

    Only configuration files are read; components are built on the meta device, which costs no
    memory. Predicted bytes are those that the quantized component then holds, to the byte.

    Parameters
    ----------
    model : str, path or DiffusionPipeline, optional
        ``"demo"``, a folder in Diffusers layout, a Hub id (configuration files only), or a model
        whose configuration is built in (`quantolab.models.known`): ``"FLUX.1-dev"``,
        ``"SD3.5-large"``, ``"Wan2.1-14B"``, ... by its name or its Hub id. Or a pipeline in memory,
        of which the configuration counts.
    recipes : iterable of Recipe or str, optional
        By default all dtypes. The unquantized reference is always among the rows.
    components : str or iterable of str, optional
        Which parts recipes that name none are meant for; by default the denoiser in the sums,
        while every part that can be quantized has its rows.
    dtype : str
        Compute dtype, in which scales and everything that isn't quantized are held.
    vram : int or str, optional
        A budget: bytes, or ``"16GB"`` as cards mean it, whose 16 GB are 16 GiB.
    size : (int, int), optional
        Width and height in pixels of the pictures that a comparison makes; by default what the
        model was made for, else 1024x1024.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.
    frames : int, optional
        Frames of the videos that a comparison makes; by default the pipeline's own number.

    Returns
    -------
    pandas.DataFrame
        A row for each component and recipe, a row for each other part with weights (the VAE),
        and a row for each recipe whose `component` is ``"pipeline"``: the recipe's parts
        quantized (column `quantized`), all others in the compute dtype. ``weight_bytes``;
        ``load_peak_bytes``, see Notes; ``fits``, whether `weight_bytes` are within `vram` (None
        without one); ``parameters, quantized_layers, weights, compute_dtype``; ``size``, and of
        videos ``frames``.
        Rows of the pipeline say what a comparison takes of an accelerator, see Notes:
        ``encode_bytes``, ``resident_bytes``, ``tiled_bytes``, and with Diffusers' and accelerate's
        offload ``model_offload_bytes``, ``group_offload_bytes``, ``sequential_offload_bytes``;
        ``compare_bytes``, the larger of the first two; ``compare_fits``, whether these are within
        `vram`.
        ``attrs["not_counted"]`` names parts whose class is unknown here, ``attrs["variants"]``
        says which variant of the weights files would be read, where it isn't the plain ones.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError, UnsupportedError
        If the request is none, or the model's configuration isn't there or can't be built.

    Notes
    -----
    A comparison encodes prompts first, with the text encoders alone on the accelerator, then runs
    each recipe with its denoiser and the VAE. Counted are weights, 0.5 GB of the accelerator's own
    context, and activations for one picture (or video) of that size, from fake tensors: the
    forward of each part on shapes alone. All of it is arithmetic; nothing else that is on a card
    is counted. Offloaded ways decode in tiles.

    ``load_peak_bytes`` is the most that tensors take on a CPU while `load` reads and quantizes
    the component: an upper bound, whatever the order of the file. A layer is quantized some rows
    at a time, which takes some 10 MB beside what is made (20 in float32); each backend's
    `quantizing_bytes` has the exceptions.

    - A Diffusers component is read layer by layer: all quantized weights, and what the largest
      layer takes beside its own, a copy in the compute dtype included (a file may hold another).
    - A transformers component (text encoders) is read whole before it is quantized: all
      unquantized weights, and what the largest layer takes.

    Conditions: safetensors whose names are the class's own. Mapped pages of the file, which are
    the system's to take back, come on top. What an accelerator
    needs while loading has not been measured: there, Quanto's own arithmetic takes up to three
    times a layer's unquantized weight.
    Sums over several components assume that the one which needs most is loaded last.

    Examples
    --------
    >>> table = plan("FLUX.1-dev", vram="16GB")
    >>> table[(table.component == "transformer") & (table.weights == "int4")].weight_bytes.item()
    6327162976
    """
    import pandas as pd

    if not (model is None or isinstance(model, (str, os.PathLike))):
        from .of_pipeline import write_configs

        with scratch_folder("plan") as folder:
            place = write_configs(model, folder)
            asked = {"components": components, "dtype": dtype, "vram": vram, "size": size}
            table = plan(place, recipes, frames=frames, **asked)
        table["model"] = type(model).__name__  # the folder is gone
        return table
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    budget = None if vram is None else _memory(vram)
    source = find_model(model, weights=False, variant=variant, revision=revision)
    picture = _picture_size(source, size)
    if frames is not None:
        whole_number("frames", frames, most=MOST_FRAMES)
    chosen = _with_reference(WORDS if recipes is None else recipes)
    meant = _names(components)
    for name in meant:
        source.component(name)
    asked = [_asked(recipe, source, meant) for recipe in chosen]
    needed = {*(meant or source.denoisers), *(n for entry in asked for n in entry.quantized)}
    parts, not_counted = _build_parts(source, needed, dtype)
    rows = []
    for part in parts:
        for entry in asked:
            if entry.recipe.is_reference or (part.quantizable and part.name in entry.shown):
                row = _row(source, part, entry, dtype)
                rows += [] if row is None else [row]
    for entry in asked:
        _check(entry, parts, dtype)
    if source.pipeline is not None:
        from .activations import activations, frames_made

        modules = {part.name: part.module for part in parts}
        found = activations(source, modules, picture, dtype, frames)
        made = {"frames": frames_made(source, modules, frames)}
        rows += [
            _sum(source, rows, entry)
            | _needed(source, parts, entry, found, dtype, picture, budget)
            | made
            for entry in asked
        ]
    for row in rows:
        row["fits"] = None if budget is None else row["weight_bytes"] <= budget
        row["compute_dtype"] = dtype
    table = pd.DataFrame(rows, columns=_COLUMNS)
    main = (source.denoisers or meant or _names(parts[0].name))[0]
    table.attrs = {
        "vram": budget,
        "not_counted": not_counted,
        "denoiser": main,
        "variants": source.variant_sentence,
    }
    return table


@dataclass(frozen=True)
class _Part:
    """A component without its weights."""

    name: str
    quantizable: bool
    read_whole: bool
    """Whether it is loaded unquantized first."""
    module: torch.nn.Module
    layers: tuple[Layer, ...]


def _build_parts(
    source: Source, needed: set[str], dtype: str
) -> tuple[list[_Part], tuple[str, ...]]:
    """Return the denoisers, the other components, the parts that are never quantized.

    Also the names of those that can't be built here; one that is needed must be.
    """
    from ..models.skeleton import build_skeleton  # what imports torch is imported late
    from ..models.unquantized import check_unquantized

    def build(component: Component, quantizable: bool) -> _Part:
        module = build_skeleton(component, dtype=dtype)
        whole = component.library == "transformers"
        return _Part(component.name, quantizable, whole, module, linear_layers(module))

    ordered = sorted(source.components, key=lambda c: c.name not in source.denoisers)
    parts, missing = [], []
    for component in ordered:
        check_unquantized(component)
    for component in (*ordered, *other_components(source)):
        quantizable = component in ordered
        try:
            parts.append(build(component, quantizable))
        except (UnsupportedError, BrokenModelError):
            if component.name in needed:
                raise
            missing.append(component.name)
    return parts, tuple(missing)


def other_components(source: Source) -> Iterator[Component]:
    """Yield what the pipeline lists beside the components that can be quantized."""
    if source.pipeline is None:
        return
    names = {component.name for component in source.components}
    for name, entry in read_object(source.folder / "model_index.json").items():
        if not isinstance(entry, list) or len(entry) != 2 or name in names or "/" in name:
            continue
        if all(isinstance(word, str) for word in entry) and not name.startswith(_NO_WEIGHTS):
            yield Component(name, *entry, source.folder / name)


def _with_reference(recipes: Iterable[Recipe | str] | Recipe | str) -> tuple[Recipe, ...]:
    single = isinstance(recipes, (str, Recipe))
    chosen = (Recipe(REFERENCE), *map(as_recipe, (recipes,) if single else recipes))
    return tuple(dict.fromkeys(chosen))


def _names(components: Iterable[str] | str | None) -> tuple[str, ...]:
    if components is None:
        return ()
    return (components,) if isinstance(components, str) else tuple(components)


@dataclass(frozen=True)
class _Asked:
    """What a recipe means in a plan."""

    recipe: Recipe
    quantized: dict[str, Share]
    """What it quantizes in the pipeline, by component."""
    shown: dict[str, Share]
    """What has rows: of a recipe that names no component every part by itself."""


def _asked(recipe: Recipe, source: Source, meant: tuple[str, ...]) -> _Asked:
    names = [component.name for component in source.components]
    if recipe.base is None or any(term.name in names for term in recipe.terms):
        mine = shares_in(recipe, source)
        return _Asked(recipe, mine, mine)
    if meant and not recipe.is_reference:
        mine = shares_in(dataclasses.replace(recipe, components=meant), source)
        return _Asked(recipe, mine, mine)
    by_itself = {name: share_of(recipe, source, name) for name in names}
    return _Asked(recipe, shares_in(recipe, source), by_itself)


def _picture_size(source: Source, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        return default_size(source) or _USUAL_SIZE
    return check_size(source, size)


def _needed(
    source: Source,
    parts: list[_Part],
    asked: _Asked,
    found: Activations,
    dtype: str,
    size: tuple[int, int],
    budget: int | None,
) -> dict[str, object]:
    """Return what a comparison takes of an accelerator under one recipe, as columns."""
    need = _needs(source, parts, asked, found, dtype)
    fits = None if budget is None or need.compare is None else need.compare <= budget
    return {
        "size": "{}x{}".format(*size),
        "encode_bytes": need.encode,
        "resident_bytes": need.resident,
        "tiled_bytes": need.tiled,
        "model_offload_bytes": need.model,
        "group_offload_bytes": need.group,
        "sequential_offload_bytes": need.sequential,
        "compare_bytes": need.compare,
        "compare_fits": fits,
    }


def _needs(
    source: Source, parts: list[_Part], asked: _Asked, found: Activations, dtype: str
) -> Needs:
    held = {}
    for part in parts:
        share = asked.quantized.get(part.name, reference_share(part.name))
        resolved = resolve(part.module, share, dtype=dtype, strict=False)
        own = bytes_by_module(part.module, resolved.words, dtype)
        profile = found.denoisers.get(part.name)
        held[part.name] = part_bytes(part.name, part.module, resolved, own, dtype, profile)
    return needs(held, source.denoisers, found)


def recipe_needs(
    source: Source,
    recipes: Iterable[Recipe],
    size: tuple[int, int],
    dtype: str,
    frames: int | None = None,
) -> dict[str, Needs | None]:
    """Return what each recipe takes of an accelerator, by label; None where that can't be told.

    Parameters
    ----------
    source : Source
        A pipeline.
    recipes : iterable of Recipe
        Which recipes.
    size : (int, int)
        Width and height of the pictures.
    dtype : str
        Compute dtype.
    frames : int, optional
        Of the videos, where it makes some.
    """
    from .activations import activations

    needed: dict[str, Needs | None] = {recipe.label: None for recipe in recipes}
    parts, missing = _build_parts(source, set(source.denoisers), dtype)
    modules = {part.name: part.module for part in parts}
    found = activations(source, modules, size, dtype, frames)
    for recipe in recipes if not missing else ():
        try:
            needed[recipe.label] = _needs(source, parts, _asked(recipe, source, ()), found, dtype)
        except QuantolabError:
            continue  # whoever runs it says why it can't be
    return needed


def _check(asked: _Asked, parts: list[_Part], dtype: str) -> None:
    """Make sure that all of a recipe takes effect in the pipeline."""
    modules = {part.name: part.module for part in parts}
    for share in asked.quantized.values():
        mine = asked.quantized.items()
        found = {n: (s, resolve(modules[n], s, dtype=dtype, strict=False)) for n, s in mine}
        check_recipe(share.recipe, found)
        return


def _row(source: Source, part: _Part, asked: _Asked, dtype: str) -> dict | None:
    """Return the row of a part under a recipe; None if it isn't asked for, and can't be."""
    share = asked.shown.get(part.name, reference_share(part.name))
    try:
        resolved = resolve(part.module, share, dtype=dtype, strict=False)
        check_supported(((c.layer, c.word) for c in resolved.quantized), dtype)
    except UnsupportedError:
        if part.name in asked.quantized:
            raise
        return None
    held = predict_weight_bytes(part.module, resolved.words, dtype)
    return {
        "model": source.model,
        "component": part.name,
        "recipe": asked.recipe.label,
        "weights": asked.recipe.weights_label,
        "quantized": part.name if resolved.quantized else "",
        "quantized_layers": len(resolved.quantized),
        "parameters": sum(p.numel() for p in part.module.parameters()),
        "weight_bytes": held,
        "load_peak_bytes": _load_peak(part, resolved, dtype, held),
    }


def _load_peak(part: _Part, resolved: Resolved, dtype: str, held: int) -> int:
    quantized = [(choice.layer, choice.word) for choice in resolved.quantized]
    if part.read_whole:
        largest = max((quantizing_bytes(la, word, dtype) for la, word in quantized), default=0)
        return predict_weight_bytes(part.module, {}, dtype) + largest
    # The weight itself is copied where the file holds it in another dtype than it is computed in.
    beside = (
        layer_bytes(layer, REFERENCE, dtype)
        + quantizing_bytes(layer, word, dtype)
        - layer_bytes(layer, word, dtype)
        for layer, word in quantized
    )
    return held + max(beside, default=0) + _READING


def _sum(source: Source, rows: list[dict], asked: _Asked) -> dict:
    """Return the row of a whole pipeline under one recipe."""
    recipe, mine = asked.recipe, tuple(asked.quantized)
    parts = [
        row
        for row in rows
        if row["recipe"] == (recipe.label if row["component"] in mine else REFERENCE)
    ]
    held = sum(row["weight_bytes"] for row in parts)
    return {
        "model": source.model,
        "component": PIPELINE,
        "recipe": recipe.label,
        "weights": recipe.weights_label,
        "quantized": ", ".join(mine),
        "quantized_layers": sum(row["quantized_layers"] for row in parts),
        "parameters": sum(row["parameters"] for row in parts),
        "weight_bytes": held,
        "load_peak_bytes": held
        + max(row["load_peak_bytes"] - row["weight_bytes"] for row in parts),
    }


_USUAL_SIZE = (1024, 1024)
_LEAST_MEMORY = 1_000_000  # bytes: no device has less


def _memory(vram: int | float | str) -> int:
    """Return the bytes of a device's memory; a number without a unit is hardly meant as bytes.

    A card of 12 GB has 12 GiB.
    """
    said = str(vram).strip()
    if said[-2:].upper() in ("GB", "MB") and said[-3:-2] not in ("i", "I"):
        said = f"{said[:-2]}{said[-2]}iB"
    count = parse_bytes(said)
    if count < _LEAST_MEMORY:
        raise ArgumentError(
            f"vram {vram!r} is {format_bytes(parse_bytes(vram))}, less than any device has; is "
            f"{vram}GB meant?"
        )
    return count
