"""Whole pipelines: several components quantized by one recipe, saved and loaded together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ArgumentError, BrokenModelError, one_of
from ..files.json_objects import read_object
from ..files.whole import write_whole
from ..loading.pipelines import assemble
from ..recipes import COMPUTE_DTYPES
from .folder import open_saved
from .record import FORMAT, RECORD
from .restoring import load_saved_component
from .writing import compute_dtype, dtype_name, library_of, unwrapped, versions, write_component

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_INDEX = "model_index.json"


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
            dtypes.append(write_component(part, place, max_shard_size=max_shard_size).dtype)
        elif hasattr(part, "save_pretrained"):
            part.save_pretrained(str(place))
        else:
            raise ArgumentError(
                f"part {name!r} of the pipeline, a {type(part).__name__}, can't be saved"
            )
    write_whole(folder / _INDEX, json.dumps(config, indent=2, sort_keys=True) + "\n")
    record = {
        "format": FORMAT,
        "class": type(pipe).__name__,
        "library": "diffusers",
        "dtype": max(sorted(set(dtypes)), key=dtypes.count) if dtypes else "float32",
        "versions": versions(),
    }
    write_whole(folder / RECORD, json.dumps(record, indent=1) + "\n")


def load_saved_pipeline(
    folder: Path, device: str, dtype: str | None = None, check: bool = True
) -> DiffusionPipeline:
    """Return a pipeline from its folder; see `load_saved`."""
    index = read_object(folder / _INDEX, folder)
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
    return assemble(folder, cls, parts, dtype=word, device=device)


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
    return "quantization_config" in read_object(place / "config.json", place)


def _dtype_of(folder: Path, parts: dict[str, Any]) -> str:
    if (folder / RECORD).is_file():
        word = read_object(folder / RECORD, folder).get("dtype")
        return one_of(f"dtype in {folder / RECORD}", word, COMPUTE_DTYPES)
    found = [dtype_name(compute_dtype(part)) for part in parts.values()]
    return next((word for word in found if word in COMPUTE_DTYPES), "float32")
