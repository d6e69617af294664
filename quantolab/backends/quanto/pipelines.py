"""Whole pipelines: several components quantized by one recipe, saved and loaded together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...devices import resolve_device
from ...errors import ArgumentError, BrokenModelError, UnsupportedError, one_of
from ...models.layers import check_patterns, linear_layers
from ...models.skeleton import build_skeleton, dtype_keyword, quiet_libraries
from ...models.source import find_model
from ...recipes import COMPUTE_DTYPES, Recipe, as_recipe
from .reading import load_component
from .saved_folder import open_saved, read_object
from .saving import RECORD, library_of, unwrapped, versions, write_component
from .swapping import write_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_INDEX = "model_index.json"


def load_pipeline(
    model: str | Path | None = None,
    recipe: Recipe | str = "int8",
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
) -> DiffusionPipeline:
    """Return a model's pipeline with the recipe's components quantized.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id.
    recipe : Recipe or str
        What to quantize to, which layers to keep, and in which components (the denoiser, unless
        the recipe names some).
    dtype : str
        Compute dtype of all parts.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.

    Raises
    ------
    ArgumentError
        Unknown recipe, component, dtype or device, or a skip pattern that hits no component.
    ModelNotFoundError, BrokenModelError, UnsupportedError
        If the model isn't there, can't be read, or is no pipeline.

    Examples
    --------
    >>> pipe = load_pipeline("demo", Recipe("int8", components=("transformer", "text_encoder")))
    """
    recipe = as_recipe(recipe)
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    device = resolve_device(device)
    source = find_model(model)
    names = recipe.components or (source.denoiser,)
    components = [source.component(name) for name in names]
    if recipe.skip:
        layers = {c.name: linear_layers(build_skeleton(c)) for c in components}
        check_patterns(recipe.skip, layers)
    parts = {
        c.name: load_component(c, recipe, dtype=dtype, device=device, strict_skip=False)[0]
        for c in components
    }
    return _assemble(source.folder, source.pipeline, parts, getattr(torch, dtype), device)


def write_pipeline(
    pipe: DiffusionPipeline, folder: Path, *, max_shard_size: int | str | None = None
) -> None:
    """Write every part of a pipeline into an existing, empty folder; see `save`.

    Models of Diffusers and transformers are written in quantolab's form, quantized or not;
    tokenizers, schedulers and the like by their own ``save_pretrained``.
    """
    config = json.loads(pipe.to_json_string())
    config.pop("_name_or_path", None)
    dtypes = []
    for name, part in pipe.components.items():
        if part is None or not isinstance(config.get(name), list):
            continue
        place = folder / name
        place.mkdir()
        if isinstance(part, torch.nn.Module) and _is_known(part):
            part = unwrapped(part)
            config[name] = [library_of(part), type(part).__name__]
            write_component(part, place, max_shard_size=max_shard_size)
            dtypes.append(json.loads((place / RECORD).read_text())["dtype"])
        elif hasattr(part, "save_pretrained"):
            part.save_pretrained(str(place))
        else:
            raise ArgumentError(
                f"part {name!r} of the pipeline, a {type(part).__name__}, can't be saved"
            )
    write_text(folder / _INDEX, json.dumps(config, indent=2, sort_keys=True) + "\n")
    record = {
        "format": 1,
        "class": type(pipe).__name__,
        "library": "diffusers",
        "dtype": max(sorted(set(dtypes)), key=dtypes.count) if dtypes else "float32",
        "versions": versions(),
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def load_saved_pipeline(
    folder: Path, device: str, dtype: str | None = None, check: bool = True
) -> DiffusionPipeline:
    """Return a pipeline from its folder; see `load_saved`."""
    from .restoring import load_saved_component

    index = read_object(folder, _INDEX)
    cls = index.get("_class_name")
    if not isinstance(cls, str):
        raise BrokenModelError(f"{folder / _INDEX} names no pipeline class (_class_name)")
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or entry in ([None, None],):
            continue
        place = folder / name
        if Path(name).name != name or not _is_inside(place, folder):
            raise BrokenModelError(f"{folder / _INDEX} names a part {name!r} outside its folder")
        if _is_saved_by_us_or_quantized(place):
            saved = open_saved(place)
            parts[name] = load_saved_component(saved, device=device, dtype=dtype, check=check)
    word = dtype or _dtype_of(folder, parts)
    return _assemble(folder, cls, parts, getattr(torch, word), device)


def _assemble(
    folder: Path, cls: str | None, parts: dict, dtype: torch.dtype, device: str
) -> DiffusionPipeline:
    import diffusers

    if cls is None:
        raise UnsupportedError(f"{str(folder)!r} is one component, not a pipeline: use load")
    pipeline = getattr(diffusers, cls, None)
    if not isinstance(pipeline, type) or not issubclass(pipeline, diffusers.DiffusionPipeline):
        raise UnsupportedError(f"diffusers {diffusers.__version__} has no pipeline {cls!r}")
    try:
        with quiet_libraries():
            pipe = pipeline.from_pretrained(
                str(folder),
                **{dtype_keyword("diffusers"): dtype},
                local_files_only=True,
                use_safetensors=True,
                **parts,
            )
            pipe.to(device)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrokenModelError(f"{folder} can't be loaded as a {cls}: {first}") from error
    return pipe


def _is_inside(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def _is_known(part: torch.nn.Module) -> bool:
    try:
        library_of(unwrapped(part))
    except ArgumentError:
        return False
    return True


def _is_saved_by_us_or_quantized(place: Path) -> bool:
    if (place / RECORD).exists():
        return True
    if not (place / "config.json").is_file():
        return False
    return "quantization_config" in read_object(place, "config.json")


def _dtype_of(folder: Path, parts: dict) -> str:
    from .saving import compute_dtype

    if (folder / RECORD).is_file():
        word = read_object(folder, RECORD).get("dtype")
        return one_of(f"dtype in {folder / RECORD}", word, COMPUTE_DTYPES)
    found = [str(compute_dtype(part)).removeprefix("torch.") for part in parts.values()]
    return next((word for word in found if word in COMPUTE_DTYPES), "float32")
