"""`save` and `load_saved`: a component or a whole pipeline, to a folder and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import public
from ..devices import resolve_device
from ..errors import one_of
from ..files.whole import new_folder
from ..recipes import COMPUTE_DTYPES
from .folder import open_saved
from .pipelines import load_saved_pipeline, write_pipeline
from .restoring import load_saved_component
from .writing import check_replaceable, library_of, unwrapped, write_component

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@public
def save(
    module: torch.nn.Module | DiffusionPipeline,
    folder: str | os.PathLike[str],
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
        with new_folder(target) as fresh:
            write_pipeline(module, fresh, max_shard_size=max_shard_size)
        return target
    module = unwrapped(module)
    library_of(module)  # before anything is written
    with new_folder(target) as fresh:
        write_component(module, fresh, max_shard_size=max_shard_size)
    return target


@public
def load_saved(
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | None = None,
    check: bool = True,
) -> Any:
    """Load a saved component or pipeline: nothing is quantized, the file is read once.

    Reads what `save` writes, what Diffusers' ``save_pretrained`` writes of a model with a
    ``QuantoConfig``, and what Quanto itself writes (``quanto_qmap.json``). Nothing in the folder
    is run or trusted.

    Parameters
    ----------
    folder : str or path
        A component's folder, or a pipeline's (with ``model_index.json``).
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    dtype : str, optional
        Compute dtype; by default the one it was saved in.
    check : bool
        Whether the files must be, byte for byte, those that were saved. (Folders that quantolab
        didn't write carry no digest to check.)

    Returns
    -------
    torch.nn.Module or DiffusionPipeline
        A component in eval mode, with its `quantize_report`; its outputs are, bit for bit, the
        saved model's.

    Raises
    ------
    ArgumentError
        Unknown device or dtype.
    ModelNotFoundError
        If there is no such folder.
    BrokenModelError
        If a file is truncated, changed, foreign or malformed, or tensors are missing or too many.
    UnsupportedError
        If it holds quantized activations, or a class that isn't installed.

    Examples
    --------
    >>> transformer = load_saved(save(load("demo", "int8"), "demo-int8"))
    """
    if dtype is not None:
        one_of("compute dtype", dtype, COMPUTE_DTYPES)
    device = resolve_device(device)
    if (Path(folder).expanduser() / "model_index.json").is_file():
        return load_saved_pipeline(Path(folder).expanduser(), device, dtype, check)
    return load_saved_component(open_saved(folder), device=device, dtype=dtype, check=check)
