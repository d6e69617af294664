"""Saved models: Diffusers' own layout, plus `quantolab.json`, which says what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import ArgumentError, OutputError
from ...models.layers import linear_layers
from ...recipes import Recipe
from .declaring import undeclared
from .diffusers_form import DiffusersForm, diffusers_form
from .files import (
    DIGEST,
    INDEX,
    FileLayout,
    digest_of,
    index_text,
    plan_files,
    specs_of,
    write_files,
)
from .generic import Piece, pieces, tied_names
from .quantize import QuantizeReport
from .swapping import new_folder, write_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

RECORD = "quantolab.json"
FORMAT = 1
"""Version of `quantolab.json`; raised when an older quantolab could misread it."""

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto", "safetensors")
_WORDS = {"qint8": "int8", "qint4": "int4", "qint2": "int2", "qfloat8_e4m3fn": "float8"}


def save(
    module: torch.nn.Module | DiffusionPipeline,
    folder: str | os.PathLike,
    *,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
) -> Path:
    """Save a component, or a whole pipeline, so that it loads without quantizing anything.

    The folder has Diffusers' layout: `load_saved` reads it, and so does plain Diffusers'
    ``from_pretrained`` wherever its rules can express which layers are quantized
    (`quantolab.json` and `verify_saved` say when not, and then Diffusers refuses it). Weights
    are written one module at a time. The folder appears whole or not at all.

    Parameters
    ----------
    module : torch.nn.Module or DiffusionPipeline
        A Diffusers or transformers model, quantized by quantolab, by Diffusers or by Quanto
        itself, or not at all; or a pipeline, whose parts are saved each in the same way.
    folder : str or path
        Where to. A model saved there before is replaced, in one step at the very end.
    max_shard_size : int or str, optional
        Bytes of one weights file at most, ``"5GB"`` for example; by default there is one file.
    overwrite : bool
        Whether a model saved there before may be replaced.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ArgumentError
        If the module isn't a Diffusers or transformers model, or isn't frozen.
    UnsupportedError
        If its activations are quantized.
    OutputError
        If the folder holds anything but a saved model, or can't be written.

    Examples
    --------
    >>> save(load("demo", "int8"), "demo-int8")
    PosixPath('demo-int8')
    """
    target = Path(folder).expanduser()
    check_replaceable(target, overwrite)
    if not isinstance(module, torch.nn.Module) and hasattr(module, "components"):
        from .pipelines import write_pipeline

        with new_folder(target) as fresh:
            write_pipeline(module, fresh, max_shard_size=max_shard_size)
        return target
    module = unwrapped(module)
    library_of(module)  # before anything is written
    with new_folder(target) as fresh:
        write_component(module, fresh, max_shard_size=max_shard_size)
    return target


def write_component(
    module: torch.nn.Module, folder: Path, *, max_shard_size: int | str | None = None
) -> None:
    """Write one component into an existing, empty folder; see `save`."""
    library = library_of(module)
    quantized = quantized_layers(module)
    kept = [la.path for la in linear_layers(module) if la.path not in quantized]
    form = diffusers_form(module, quantized, kept, library)
    config = component_config(module, library)
    if form.quantization_config is not None:
        config["quantization_config"] = form.quantization_config
    parts = list(pieces(module))
    report = getattr(module, "quantize_report", None)
    about = {
        "class": type(module).__name__,
        "library": library,
        "recipe": _recipe(report, quantized, kept).to_dict(),
        "dtype": str(compute_dtype(module)).removeprefix("torch."),
        "quantized_layers": quantized,
        "skipped_layers": kept if quantized else [],
        "reasons": dict(report.kept) if isinstance(report, QuantizeReport) else {},
        "cures": [list(pair) for pair in getattr(report, "cures", ())],
        "tied": tied_names(module),
        "buffers": _loose_buffers(module),
    }
    write_folder(folder, parts, STEMS[library], config, about, form, max_shard_size)


def write_folder(
    folder: Path,
    parts: list[Piece],
    stem: str,
    config: dict,
    about: dict,
    form: DiffusersForm,
    max_shard_size: int | str | None = None,
) -> list[FileLayout]:
    """Write weights, index, ``config.json`` and `quantolab.json` into an empty folder."""
    layouts = plan_files(specs_of(parts), stem, max_shard_size)
    digests = write_files(parts, layouts, folder)
    if text := index_text(layouts):
        write_text(folder / (stem + INDEX), text + "\n")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_text(folder / "config.json", text)
    digests["config.json"] = digest_of(text.encode())
    record = {
        "format": FORMAT,
        **about,
        "plain_diffusers": {"loads": form.loads, "reason": form.reason},
        "versions": versions(),
        "digest": {"algorithm": DIGEST, "files": digests},
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    return layouts


def versions() -> dict[str, str]:
    """Return the versions that decide what a saved model means, quantolab's own first."""
    from quantolab import __version__

    found = {"quantolab": __version__}
    for package in _PACKAGES:
        found[package] = metadata.version(package)
    return found


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


def component_config(module: torch.nn.Module, library: str) -> dict:
    """Return what stands in a component's ``config.json``, without its quantization."""
    with undeclared():
        if library == "diffusers":
            config = json.loads(module.to_json_string())
        else:
            config = json.loads(module.config.to_json_string(use_diff=True))
            config["architectures"] = [type(module).__name__]
            config.setdefault("model_type", module.config.model_type)
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)  # a path of this machine
    return config


def quantized_layers(module: torch.nn.Module) -> dict[str, str]:
    """Return the weights dtype of each quantized layer by its path."""
    from optimum.quanto.nn import QModuleMixin

    found = {}
    for path, part in module.named_modules():
        if isinstance(part, QModuleMixin) and part.weight_qtype is not None:
            name = part.weight_qtype.name
            if name not in _WORDS:
                raise ArgumentError(
                    f"layer {path!r} has weights of type {name}; known: {', '.join(_WORDS)}"
                )
            found[path] = _WORDS[name]
    return found


def compute_dtype(module: torch.nn.Module) -> torch.dtype:
    """Return the dtype that most of a module's floating-point parameters compute in."""
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=counts.get) if counts else torch.float32


def recipe_of(quantized: dict[str, str], kept: Iterable[str]) -> Recipe:
    """Return the recipe that gives these layers, where nobody recorded one."""
    if not quantized:
        return Recipe("none")
    words = list(quantized.values())
    return Recipe(max(sorted(set(words)), key=words.count), skip=tuple(kept))


def _recipe(report: Any, quantized: dict[str, str], kept: list[str]) -> Recipe:
    if isinstance(report, QuantizeReport) and set(report.quantized) == set(quantized):
        return report.recipe
    return recipe_of(quantized, kept)


def _loose_buffers(module: torch.nn.Module) -> dict[str, str]:
    """Return the dtypes of floating-point buffers that no file holds: loading computes them."""
    held = {spec.name for spec in specs_of(pieces(module))}
    return {
        name: str(buffer.dtype).removeprefix("torch.")
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
    return path.name.endswith((".safetensors", INDEX))
