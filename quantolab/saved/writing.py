"""One component is written: weights, configuration, and `quantolab.json`, which says what it is."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from .. import __version__
from ..backends import computes_in, diffusers_form, header_notes, package_versions, quantized_layers
from ..errors import ArgumentError, OutputError
from ..files.choosing import INDEX, STEMS, SUFFIX
from ..files.layout import FileLayout, Piece, index_text, plan_files, specs_of
from ..files.whole import write_whole
from ..files.writing import DIGEST, digest_of, write_files
from ..loading.report import QuantizeReport
from ..models.layers import linear_layers
from ..models.skeleton import build_skeleton
from ..models.source import Component
from ..models.wording import recipe_of_words
from ..recipes import Recipe
from ..weights import REFERENCE
from .pieces import pieces
from .record import RECORD, Digests, Dtype, PlainDiffusers, Record
from .ties import tied_names

_PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto", "safetensors")


def write_component(
    module: torch.nn.Module, folder: Path, *, max_shard_size: int | str | None = None
) -> Record:
    """Write one component into an existing, empty folder; see `save`. Returns its record."""
    library = library_of(module)
    quantized = quantized_layers(module)
    kept = [la.path for la in linear_layers(module) if la.path not in quantized]
    form = diffusers_form(module, quantized, kept, library)
    config = component_config(module, library)
    if form.quantization_config is not None:
        config["quantization_config"] = form.quantization_config
    parts = list(pieces(module))
    write_whole(folder / "config.json", _json(config))  # from which the class is built here
    _check_rebuilt(module, Component("", library, type(module).__name__, folder), parts, quantized)
    report = getattr(module, "quantize_report", None)
    record = Record(
        cls=type(module).__name__,
        library=library,
        recipe=_recipe(report, quantized, kept),
        dtype=dtype_name(compute_dtype(module)),
        quantized_layers=quantized,
        skipped_layers=tuple(kept) if quantized else (),
        reasons=dict(report.kept) if isinstance(report, QuantizeReport) else {},
        cures=tuple(getattr(report, "cures", ())),
        tied=tied_names(module),
        buffers=_loose_buffers(module),
        plain_diffusers=PlainDiffusers(form.loads, form.reason),
        versions=versions(quantized.values()),
        digest=Digests(DIGEST, {}),
    )
    notes = header_notes(module, [spec.name for spec in specs_of(parts)])
    write_folder(folder, parts, config, record, max_shard_size, notes)
    return record


def _check_rebuilt(
    module: torch.nn.Module, component: Component, parts: list[Piece], quantized: dict[str, str]
) -> None:
    """Make sure that the class, built anew, will ask for exactly the tensors that are written.

    Raises
    ------
    ArgumentError
        If it won't: something has changed the model's modules since it was built.
    """
    shapes = {spec.name: spec.shape for spec in specs_of(parts)}
    skeleton = build_skeleton(component).state_dict()
    written, asked = set(shapes), set(skeleton)
    weights = {f"{path}.weight".removeprefix(".") for path in quantized}
    own = {name for name in written if _owner(name, quantized) is not None}
    unknown = sorted((written - own - asked) | (weights - asked))
    missing = sorted(asked - weights - written - set(tied_names(module)))
    if unknown or missing:
        what = f"has {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise ArgumentError(
            f"this {component.cls} can't be saved: it {what}, and one that is built anew from its "
            f"configuration {'has no such tensor' if unknown else 'asks for it'}. Fused "
            "projections and adapters (LoRA) change a model so: undo them first "
            "(unfuse_qkv_projections, unload_lora_weights)"
        )
    for path in quantized:
        part: Any = module.get_submodule(path)
        is_linear = isinstance(part, torch.nn.Linear)  # whose weight may be packed
        shape = (part.out_features, part.in_features) if is_linear else tuple(part.weight.shape)
        shapes[f"{path}.weight".removeprefix(".")] = shape
    for name in sorted(asked & shapes.keys()):
        if tuple(shapes[name]) != tuple(skeleton[name].shape):
            raise ArgumentError(
                f"this {component.cls} can't be saved: {name!r} has the shape "
                f"{tuple(shapes[name])}, and one that is built anew from its configuration asks "
                f"for {tuple(skeleton[name].shape)}"
            )


def _owner(name: str, quantized: dict[str, str]) -> str | None:
    """Return the quantized layer of whose weight or scales a tensor is a part."""
    parts = name.split(".")
    for count in range(len(parts)):
        path = ".".join(parts[:count])
        if path in quantized and parts[count:] != ["bias"]:
            return path
    return None


def _json(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def write_folder(
    folder: Path,
    parts: list[Piece],
    config: dict[str, Any],
    record: Record,
    max_shard_size: int | str | None = None,
    notes: dict[str, str] | None = None,
) -> list[FileLayout]:
    """Write weights, index, ``config.json`` and `quantolab.json` into an empty folder.

    Parameters
    ----------
    folder : Path
        Where to.
    parts : list of Piece
        The tensors.
    config : dict
        What goes into ``config.json``.
    record : Record
        What goes into `quantolab.json`, digests apart, which are found while writing.
    max_shard_size : int or str, optional
        As for `save`.
    notes : dict, optional
        What the files' headers say beside their tensors.
    """
    stem = STEMS[record.library]
    layouts = plan_files(specs_of(parts), stem, max_shard_size, notes)
    digests = write_files(parts, layouts, folder)
    if text := index_text(layouts):
        write_whole(folder / (stem + INDEX), text + "\n")
    text = _json(config)
    write_whole(folder / "config.json", text)
    digests["config.json"] = digest_of(text.encode())
    record = dataclasses.replace(record, digest=Digests(DIGEST, digests))
    write_whole(folder / RECORD, json.dumps(record.to_file(), indent=1) + "\n")
    return layouts


def versions(words: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions that decide what a saved model means, quantolab's own first.

    Parameters
    ----------
    words : iterable of str
        Weights words of its layers.
    """
    found = {"quantolab": __version__}
    for package in _PACKAGES:
        found[package] = metadata.version(package)
    return found | package_versions(words)


def check_replaceable(folder: Path, overwrite: bool = True, mark: str = RECORD) -> None:
    """Make sure that saving to a folder destroys nothing but a model saved before.

    Parameters
    ----------
    folder : Path
        Where something will be saved.
    overwrite : bool
        Whether a model saved there before may be replaced.
    mark : str
        Name of the file that tells such a model from other folders.

    Raises
    ------
    OutputError
        If something is there that `save` didn't write, or `overwrite` is False.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / mark).is_file():
        raise OutputError(
            f"{str(folder)!r} is there and isn't a model saved by quantolab (no {mark}); it is "
            "left as it is. Save to a new folder, or remove this one"
        )
    if not overwrite:
        raise OutputError(f"a model is saved in {str(folder)!r} already, and overwrite is False")
    foreign = sorted(p.name for p in folder.iterdir() if p.name != mark and not _is_ours(folder, p))
    if foreign:
        raise OutputError(
            f"{str(folder)!r} holds a saved model and also {foreign[0]!r}, which saving anew "
            "would delete; move it away, or save to a new folder"
        )


def unwrapped(module: Any) -> torch.nn.Module:
    """Return the module that ``torch.compile`` was called on, or the module itself."""
    return getattr(module, "_orig_mod", module)


def library_of(module: Any) -> str:
    """Return ``"diffusers"`` or ``"transformers"``: whose class a model is.

    Raises
    ------
    ArgumentError
        If it is neither: nothing could build its class again when loading.
    """
    if isinstance(module, torch.nn.Module):
        import diffusers
        import transformers

        cls = type(module)
        if isinstance(module, diffusers.ModelMixin) and hasattr(diffusers, cls.__name__):
            return "diffusers"
        if isinstance(module, transformers.PreTrainedModel) and hasattr(transformers, cls.__name__):
            return "transformers"
    raise ArgumentError(
        f"a {type(module).__name__} can't be saved: allowed are models of Diffusers and "
        "transformers, whose classes can be built again from their configuration, and pipelines"
    )


def component_config(module: torch.nn.Module, library: str) -> dict[str, Any]:
    """Return what stands in a component's ``config.json``, without its quantization."""
    with warnings.catch_warnings():
        # What is saved here is saved by us: no note about other savers (see `config_note`).
        warnings.simplefilter("ignore", UserWarning)
        if library == "diffusers":
            config = json.loads(module.to_json_string())
        else:
            config = json.loads(module.config.to_json_string(use_diff=True))
            config["architectures"] = [type(module).__name__]
            config.setdefault("model_type", module.config.model_type)
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)  # a path of this machine
    return config


def compute_dtype(module: torch.nn.Module) -> torch.dtype:
    """Return the dtype that most of a module's floating-point parameters compute in."""
    counts: dict[torch.dtype, int] = {}
    for part in module.modules():
        own = computes_in(part)  # of layers whose tensors don't tell
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point() or own is not None:
                dtype = own or parameter.dtype
                counts[dtype] = counts.get(dtype, 0) + parameter.numel()
    return max(counts, key=lambda kind: counts[kind]) if counts else torch.float32


def dtype_name(dtype: torch.dtype) -> Dtype:
    """Return a dtype's name as recipes and files write it: ``"bfloat16"``."""
    return cast(Dtype, str(dtype).removeprefix("torch."))  # one that models compute in


def recipe_of(quantized: dict[str, str], kept: Iterable[str]) -> Recipe:
    """Return the recipe that gives these layers, where nobody recorded one."""
    if not quantized:
        return Recipe(REFERENCE)
    return recipe_of_words({**dict.fromkeys(kept, REFERENCE), **quantized})


def _recipe(report: Any, quantized: dict[str, str], kept: list[str]) -> Recipe:
    if isinstance(report, QuantizeReport) and set(report.quantized) == set(quantized):
        return report.recipe
    return recipe_of(quantized, kept)


def _loose_buffers(module: torch.nn.Module) -> dict[str, Dtype]:
    """Return the dtypes of floating-point buffers that no file holds: loading computes them."""
    held = {spec.name for spec in specs_of(pieces(module))}
    return {
        name: dtype_name(buffer.dtype)
        for name, buffer in module.named_buffers()
        if name not in held and buffer.is_floating_point()
    }


def _is_ours(folder: Path, path: Path) -> bool:
    if path.name in (RECORD, "config.json", "model_index.json"):
        return path.is_file()
    if path.is_dir():  # a part of a saved pipeline
        try:
            return path.name in json.loads((folder / "model_index.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
    return path.name.endswith((SUFFIX, INDEX))
