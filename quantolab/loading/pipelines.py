"""Whole pipelines: put together around components that are there, or loaded with some quantized."""

from __future__ import annotations

import inspect
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import public
from ..backends import check_installed
from ..devices import resolve_device
from ..errors import BrokenModelError, UnsupportedError, first_line, is_out_of_memory, one_of
from ..models.resolving import reference_share
from ..models.skeleton import dtype_keyword, quiet_libraries
from ..models.source import find_model
from ..models.unquantized import check_unquantized
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..weights import DEFAULT
from .component import check_shares, load_component

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@public
def load_pipeline(
    model: str | Path | None = None,
    recipe: Recipe | str = DEFAULT,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    variant: str | None = None,
    revision: str | None = None,
) -> DiffusionPipeline:
    """Return a model's pipeline with the recipe's components quantized.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id.
    recipe : Recipe or str
        What to quantize to, which layers to keep, and in which components: the denoiser alone,
        unless the recipe names others.
    dtype : str
        Compute dtype of all parts.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.

    Raises
    ------
    ArgumentError
        Unknown recipe, component, dtype or device, or a skip pattern that hits no component.
    ModelNotFoundError, BrokenModelError, UnsupportedError
        If the model isn't there, can't be read, or is no pipeline.

    Examples
    --------
    >>> pipe = load_pipeline("demo", "transformer=int8 text_encoder_2=int4")
    """
    recipe = as_recipe(recipe)
    check_installed(recipe.words)
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    device = resolve_device(device)
    source = find_model(model, variant=variant, revision=revision)
    for component in source.components:
        check_unquantized(component)
    shares = check_shares(recipe, source, dtype) or {
        name: reference_share(name) for name in source.default_components
    }
    parts = {
        name: load_component(
            source.component(name), share, dtype=dtype, device=device, strict_skip=False
        )[0]
        for name, share in shares.items()
    }
    return assemble(
        source.folder, source.pipeline, parts, dtype=dtype, device=device, variant=source.variant
    )


def assemble(
    folder: Path,
    pipeline: str | None,
    parts: dict[str, Any],
    *,
    dtype: str,
    device: str | None,
    encoders: bool = True,
    variant: str | None = None,
) -> DiffusionPipeline:
    """Return the pipeline of a folder around components that are loaded already.

    Parameters
    ----------
    folder : Path
        In Diffusers layout.
    pipeline : str or None
        Name of its class; None for a folder that holds one component alone.
    parts : dict
        Components by name; None leaves one out.
    dtype : str
        Compute dtype of the rest.
    device : str or None
        Where all of it goes; None leaves each part where it is.
    encoders : bool
        Whether text encoders are needed; False leaves them and their tokenizers out.
    variant : str, optional
        Variant of the weights of the rest.

    Raises
    ------
    UnsupportedError
        If it is no pipeline, or Diffusers has no such class.
    BrokenModelError
        If Diffusers can't load the rest.
    """
    cls = _class_of(folder, pipeline)
    left_out: dict[str, Any] = {}
    if not encoders:
        names = inspect.signature(cls.__init__).parameters
        left_out = {n: None for n in names if n.startswith(("text_encoder", "tokenizer"))}
    _check_files(folder, {**left_out, **parts})
    try:
        with quiet_libraries():
            pipe = cls.from_pretrained(
                str(folder),
                **{dtype_keyword("diffusers"): getattr(torch, dtype)},
                local_files_only=True,
                use_safetensors=True,
                **({} if variant is None else {"variant": variant}),
                **{**left_out, **parts},
            )
            if device is not None:
                pipe.to(device)
    except Exception as error:  # malformed files fail in as many ways as there are libraries
        if is_out_of_memory(error):
            raise
        raise BrokenModelError(
            f"{folder} can't be loaded as a {pipeline}: {first_line(error)}"
        ) from error
    return pipe


def _check_files(folder: Path, given: Container[str]) -> None:
    """Refuse pipes and devices, which Diffusers would wait for, and what it wouldn't find."""
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BrokenModelError(f"{path} isn't an ordinary file")
    for path in folder.glob("*/*.sft"):
        if path.parent.name not in given and not any(path.parent.glob("*.safetensors")):
            raise BrokenModelError(
                f"{path} ends in .sft, which the library that loads {path.parent.name!r} doesn't "
                "look for: rename it to .safetensors"
            )


def _class_of(folder: Path, pipeline: str | None) -> Any:
    import diffusers

    if pipeline is None:
        raise UnsupportedError(
            f"{str(folder)!r} is one component, not a pipeline: it can be loaded and quantized, "
            "but makes no pictures"
        )
    with quiet_libraries():  # importing it, transformers tells what isn't installed
        cls = getattr(diffusers, pipeline, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise UnsupportedError(f"diffusers {diffusers.__version__} has no pipeline {pipeline!r}")
    return cls
