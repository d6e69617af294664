"""A component from one file, as models are often published, quantized while it is read."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..arguments import public
from ..devices import resolve_device
from ..errors import (
    ArgumentError,
    BrokenModelError,
    ModelNotFoundError,
    UnsupportedError,
    first_line,
    nearest,
    one_of,
)
from ..files.choosing import SUFFIXES
from ..files.foreign import check_plain, foreign
from ..files.lazy_tensors import Replayed
from ..files.mapped import MappedWeights
from ..hub.names import HubName, is_address, read_hub_name
from ..loading.filling import fill_skeleton
from ..models.on_hub import HubFile, find_file_on_hub
from ..models.resolving import share_of, shares_in
from ..models.skeleton import build_skeleton
from ..models.source import Component, Source, find_model
from ..models.unquantized import check_configured
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from .names import PREFIX, as_diffusers_names

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of files that torch.load reads, which may hold code."""


@public
def load_single_file(
    path: str | os.PathLike,
    recipe: Recipe | str = "int8",
    *,
    config: str | os.PathLike | None = None,
    component: str | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    allow_pickle: bool = False,
    revision: str | None = None,
) -> torch.nn.Module:
    """Return a component from one file, quantized, ready for a pipeline.

    Reads Diffusers' own layout and the original layouts that Diffusers can convert (FLUX as its
    makers publish it, the same under ``model.diffusion_model.``, and others). Tensors are read,
    converted, quantized and released one by one. The result is, bit for bit, what `load` gives
    from the same model's folder.

    Parameters
    ----------
    path : str or path
        A ``.safetensors`` (or ``.sft``) file.
    recipe : Recipe or str
        What to quantize to and which layers to keep, by Diffusers' names of the layers.
    config : str or path, optional
        What describes the model: the folder of a component, of a pipeline, or a Hub id (only
        configuration files are fetched). May be left out if the file lies beside its
        ``config.json``, or on the Hub in the repository of its pipeline. It is never guessed
        from the weights.
    component : str, optional
        Which part of a pipeline the file holds; by default the denoiser.
    dtype : str
        Compute dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    allow_pickle : bool
        Whether ``.ckpt``, ``.pt``, ``.pth`` and ``.bin`` files may be read. Even then nothing
        but tensors is unpickled (``torch.load(weights_only=True)``).
    revision : str, optional
        Branch, tag or commit of a file of the Hub.

    Returns
    -------
    torch.nn.Module
        In eval mode. Its `quantize_report` attribute says what became of each layer.

    Raises
    ------
    ArgumentError
        An unusable argument, a folder instead of a file, a pickle without `allow_pickle`, or no
        `config` where one is needed.
    ModelNotFoundError
        If the file or the configuration isn't there.
    BrokenModelError
        If the file is truncated, no safetensors, quantized already, or its tensors aren't those
        of the configuration.
    UnsupportedError
        If Diffusers can't convert this class's original layout.

    Examples
    --------
    >>> transformer = load_single_file(
    ...     "flux1-dev.safetensors", "int8", config="black-forest-labs/FLUX.1-dev"
    ... )
    """
    recipe = as_recipe(recipe)
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    device = resolve_device(device)
    path, config = find_file(path, config, allow_pickle=allow_pickle, revision=revision)
    source, part = described_by(path, config, component)
    share = share_of(recipe, source, part.name)
    stored, shapes = open_file(path)
    check_plain(path, own_dtypes(shapes))
    module = build_skeleton(part, keep_buffers=True, dtype=dtype)
    tensors = as_diffusers_names(path, part, module, stored, shapes)
    how: dict[str, Any] = {"dtype": dtype, "device": device}
    how["strict_skip"] = len(shares_in(recipe, source)) < 2  # else a pattern may be another's
    # A converter that has run may have changed tensors in place: those can't be read again.
    if isinstance(stored, MappedWeights) and isinstance(tensors, Replayed):
        how["release"] = stored.release
    module, _ = fill_skeleton(module, tensors, share, part.name, **how)
    return module.eval()


def own_dtypes(shapes: Mapping[str, torch.Tensor]) -> dict[str, torch.dtype]:
    """Return the dtypes of a file's tensors, without those of a whole checkpoint's other parts."""
    inside = {name for name in shapes if name.startswith(PREFIX)}
    return {name: shapes[name].dtype for name in inside or shapes}


def find_file(
    path: str | os.PathLike,
    config: str | os.PathLike | None,
    *,
    allow_pickle: bool,
    revision: str | None = None,
) -> tuple[Path, str | os.PathLike | None]:
    """Return a file that may be read, here or from the Hub, and what describes its model.

    A file of the Hub is brought into the cache. The repository that it lies in describes it,
    unless `config` says otherwise.

    Raises
    ------
    ArgumentError, ModelNotFoundError
        If it is a folder, one of several files, a pickle that wasn't allowed, another kind of
        file, or isn't there.
    """
    asked = hub_file(path, allow_pickle=allow_pickle, revision=revision)
    if asked is None:
        return check_path(path, allow_pickle), config
    try:
        file = find_file_on_hub(asked)
        config = description(file, config)
        if config is None:
            raise no_config(str(asked))  # before it is fetched
        return file.bring(), config
    except ModelNotFoundError as error:
        raise not_here(path, error) from None


def no_config(file: str) -> ArgumentError:
    """Return the error for a file beside which no configuration lies."""
    return ArgumentError(
        f"config is needed: nothing beside {file!r} says what model its weights are of; pass "
        "config=<folder of the component or of the pipeline, or its Hub id>"
    )


def description(file: HubFile, config: str | os.PathLike | None) -> str | os.PathLike | None:
    """Return what describes a file of the Hub: what is said, or the repository that it is in."""
    return str(file.described) if config is None and file.described is not None else config


def hub_file(
    path: str | os.PathLike, *, allow_pickle: bool, revision: str | None
) -> HubName | None:
    """Return what a path names on the Hub; None if it is a path here.

    Raises
    ------
    ArgumentError
        If it names no file there that may be read, or a file here is given a revision.
    """
    text = os.fspath(path)
    asked = None
    if is_address(text) or not Path(text).expanduser().exists():
        asked = None if text.startswith((".", "/", "~")) else read_hub_name(text, revision)
    if asked is None or not (asked.path or is_address(text)):
        if revision is not None:
            raise ArgumentError(
                f"revision {revision!r} is given for {text!r}, which is no file of the Hub "
                "(OWNER/NAME/FILE.safetensors)"
            )
        return None
    if not Path(asked.path).suffix:
        raise ArgumentError(
            f"{str(asked)!r} is a repository or a folder in one; one .safetensors file was "
            "expected (load reads repositories)"
        )
    _check_name(Path(asked.path), str(asked), allow_pickle)
    return asked


def not_here(path: str | os.PathLike, error: ModelNotFoundError) -> ModelNotFoundError:
    """Return the error for a file that is neither here nor on the Hub."""
    text = os.fspath(path)
    if is_address(text):
        return error
    return ModelNotFoundError(f"file {text!r} isn't there, and as a file of the Hub: {error}")


def check_path(path: str | os.PathLike, allow_pickle: bool) -> Path:
    """Return the path of a file here that may be read; raises as `find_file` does."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise ArgumentError(
            f"{str(path)!r} is a folder; one .safetensors file was expected (load reads folders)"
        )
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        files = [str(path.with_name(p.name)) for p in beside if p.suffix in SUFFIXES]
        raise ModelNotFoundError(f"file {str(path)!r} isn't there{nearest(str(path), files)}")
    _check_name(path, str(path), allow_pickle)
    return path


def _check_name(path: Path, shown: str, allow_pickle: bool) -> None:
    """Refuse a file by its name: a shard, a pickle that wasn't allowed, another kind of file."""
    if re.search(r"-\d+-of-\d+\.", path.name):
        raise ArgumentError(
            f"{shown!r} is one of several files that hold a model together; load reads their folder"
        )
    ending = path.suffix.casefold()
    if ending in PICKLES and not allow_pickle:
        raise ArgumentError(
            f"{shown!r} is a pickle ({ending}), which can hold code; allowed: .safetensors, "
            "or with allow_pickle=True the tensors of a pickle and nothing else"
        )
    if ending == ".gguf":
        raise foreign(path, "GGUF", "its name ends so")
    if ending not in (*SUFFIXES, *PICKLES):
        raise ArgumentError(
            f"{shown!r} ends in {ending or 'nothing'!r}; allowed: .safetensors, .sft, or with "
            f"allow_pickle=True {', '.join(PICKLES)}"
        )


def described_by(
    path: str | os.PathLike, config: str | os.PathLike | None, component: str | None
) -> tuple[Source, Component]:
    """Return the model and the component that the file holds, by its configuration.

    Beside a file of the Hub, named as such, nothing lies here.
    """
    if config is None:
        beside = Path(path).parent
        if is_address(str(path)) or not (beside / "config.json").is_file():
            raise no_config(str(path))
        config = beside
    elif not is_address(str(config)) and Path(config).name == "config.json":
        config = Path(config).parent
    source = find_model(config, weights=False)
    part = source.component(component)
    check_configured(part)
    if part.library != "diffusers":
        raise UnsupportedError(
            f"{part.name!r} is a {part.cls} of {part.library}: single files are read for Diffusers "
            "models only; load reads it from its folder"
        )
    return source, part


def open_file(path: Path) -> tuple[Mapping[str, torch.Tensor], dict]:
    """Return a file's tensors, read on demand, and their shapes as meta tensors."""
    if path.suffix.casefold() in PICKLES:
        tensors = _unpickled(path)
        return tensors, {name: t.to("meta") for name, t in tensors.items()}
    stored = MappedWeights([path])
    specs = map(stored.spec, stored)
    return stored, {s.name: torch.empty(s.shape, dtype=s.dtype, device="meta") for s in specs}


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """Return a pickle's tensors; `weights_only` refuses, and so never runs, anything else."""
    try:
        values = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise BrokenModelError(
            f"{path} holds something other than tensors, or is no pickle of torch; nothing in it "
            "was run"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise BrokenModelError(f"{path} can't be read by torch: {first_line(error)}") from error
    while isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]  # as Diffusers does: training frameworks nest it
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    if not values or not isinstance(values, dict):
        raise BrokenModelError(f"{path} holds no dictionary of tensors")
    return values
