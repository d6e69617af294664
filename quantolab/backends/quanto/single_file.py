"""A component from one file, as models are often published, quantized while it is read."""

from __future__ import annotations

import os
import pickle
import re
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ...devices import resolve_device
from ...errors import (
    ArgumentError,
    BrokenModelError,
    ModelNotFoundError,
    UnsupportedError,
    nearest,
    one_of,
)
from ...models.skeleton import build_skeleton, component_class, quiet_libraries
from ...models.source import Component, find_model
from ...recipes import COMPUTE_DTYPES, Recipe, as_recipe
from .mapped import MappedWeights
from .reading import fill_skeleton
from .recorded import NotRecordable, Replayed, record

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of files that torch.load reads, which may hold code."""

_PREFIX = "model.diffusion_model."
"""What ComfyUI and Stability put before the denoiser's names."""

# Diffusers' converter of U-Nets takes nothing that lies outside that prefix.
_PREFIXED_CLASSES = ("UNet2DConditionModel",)

_QUANTO_PARTS = (".weight._data", ".weight._scale", ".weight._data._data")
_FOREIGN_PARTS = (".absmax", ".quant_map", ".SCB", ".qweight", ".qzeros")  # bitsandbytes, GPTQ
_SCALE_PARTS = ("scale_weight", "weight_scale", "scale_input", "input_scale", "weight_scale_2")
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

# Converters of Diffusers that hold FLUX.1's width as a literal; other widths need another one.
_FIXED_WIDTH = 3072
_FIXED_WIDTH_CLASSES = (
    "FluxTransformer2DModel",
    "ChromaTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
)


def load_single_file(
    path: str | os.PathLike,
    recipe: Recipe | str = "int8",
    *,
    config: str | os.PathLike | None = None,
    component: str | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    allow_pickle: bool = False,
) -> torch.nn.Module:
    """Return a component from one file, quantized, ready for a pipeline.

    Reads Diffusers' own layout and the original layouts that Diffusers can convert (FLUX as its
    makers publish it, the same under ``model.diffusion_model.``, and others). Tensors are read,
    converted, quantized and released one by one. The result is, bit for bit, what `load` gives
    from the same model's folder.

    Parameters
    ----------
    path : str or path
        A ``.safetensors`` file.
    recipe : Recipe or str
        What to quantize to and which layers to keep, by Diffusers' names of the layers.
    config : str or path, optional
        What describes the model: the folder of a component, of a pipeline, or a Hub id (only
        configuration files are fetched). May be left out if the file lies beside its
        ``config.json``. It is never guessed from the weights.
    component : str, optional
        Which part of a pipeline the file holds; by default the denoiser.
    dtype : str
        Compute dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    allow_pickle : bool
        Whether ``.ckpt``, ``.pt``, ``.pth`` and ``.bin`` files may be read. Even then nothing
        but tensors is unpickled (``torch.load(weights_only=True)``).

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
    path = _check_path(path, allow_pickle)
    part = _described_by(path, config, component)
    stored, shapes = _open_file(path)
    _check_plain(path, shapes)
    module = build_skeleton(part, keep_buffers=True)
    tensors = _as_diffusers_names(path, part, module, stored, shapes)
    how = {"dtype": dtype, "device": device}
    # A converter that has run may have changed tensors in place: those can't be read again.
    if isinstance(stored, MappedWeights) and isinstance(tensors, Replayed):
        how["release"] = stored.release
    module, _ = fill_skeleton(module, tensors, recipe, part.name, **how)
    return module.eval()


def _check_path(path: str | os.PathLike, allow_pickle: bool) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise ArgumentError(
            f"{str(path)!r} is a folder; one .safetensors file was expected (load reads folders)"
        )
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        files = [str(path.with_name(p.name)) for p in beside if p.suffix == ".safetensors"]
        raise ModelNotFoundError(f"file {str(path)!r} isn't there{nearest(str(path), files)}")
    if re.search(r"-\d+-of-\d+\.", path.name):
        raise ArgumentError(
            f"{str(path)!r} is one of several files that hold a model together; load reads their "
            "folder"
        )
    ending = path.suffix.casefold()
    if ending in PICKLES and not allow_pickle:
        raise ArgumentError(
            f"{str(path)!r} is a pickle ({ending}), which can hold code; allowed: .safetensors, "
            "or with allow_pickle=True the tensors of a pickle and nothing else"
        )
    if ending not in (".safetensors", *PICKLES):
        raise ArgumentError(
            f"{str(path)!r} ends in {ending or 'nothing'!r}; allowed: .safetensors, or with "
            f"allow_pickle=True {', '.join(PICKLES)}"
        )
    return path


def _described_by(path: Path, config: str | os.PathLike | None, component: str | None) -> Component:
    """Return the component that the file holds, by its configuration."""
    if config is None:
        if not (path.parent / "config.json").is_file():
            raise ArgumentError(
                f"config is needed: nothing beside {str(path)!r} says what model its weights are "
                "of; pass config=<folder of the component or of the pipeline, or its Hub id>"
            )
        config = path.parent
    elif Path(config).name == "config.json":
        config = Path(config).parent
    part = find_model(config, weights=False).component(component)
    if part.library != "diffusers":
        raise UnsupportedError(
            f"{part.name!r} is a {part.cls} of {part.library}: single files are read for Diffusers "
            "models only; load reads it from its folder"
        )
    return part


def _open_file(path: Path) -> tuple[Mapping[str, torch.Tensor], dict]:
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
        raise BrokenModelError(f"{path} can't be read by torch: {_first_line(error)}") from error
    while isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]  # as Diffusers does: training frameworks nest it
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    if not values or not isinstance(values, dict):
        raise BrokenModelError(f"{path} holds no dictionary of tensors")
    return values


def _check_plain(path: Path, shapes: Mapping[str, torch.Tensor]) -> None:
    """Refuse files whose weights are quantized already: casting them would give noise."""
    for name in shapes:
        if name.endswith(_QUANTO_PARTS):
            raise BrokenModelError(
                f"{path} is quantized by Quanto already ({name!r}); load_saved reads its folder"
            )
        if name.endswith(_FOREIGN_PARTS) or ".quant_state." in name:
            raise BrokenModelError(
                f"{path} is quantized already, by bitsandbytes or GPTQ ({name!r}); an unquantized "
                "file was expected"
            )
    scales = [n for n in shapes if n.rpartition(".")[2] in _SCALE_PARTS or "scaled_fp8" in n]
    small = [n for n, t in shapes.items() if t.dtype in _FLOAT8 or t.dtype is torch.int8]
    if scales and small:
        raise BrokenModelError(
            f"{path} is quantized already: {small[0]!r} is {_dtype_name(shapes[small[0]])} and has "
            f"a scale ({scales[0]!r}), without which it means nothing; an unquantized file, or one "
            "plainly cast to float8, was expected"
        )


def _as_diffusers_names(
    path: Path,
    part: Component,
    module: torch.nn.Module,
    stored: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Tensor],
) -> Mapping[str, torch.Tensor]:
    """Return the file's tensors by the names of the module, converted if need be."""
    wanted = module.state_dict()
    recorded = _without_ignored(record(stored, shapes), module)
    found = recorded if recorded.keys() & wanted.keys() else _without_prefix(recorded)
    if found.keys() != wanted.keys():
        found = _converted(path, part, module, recorded, stored, wanted)
    _check_tensors(path, part, found, wanted)
    if all(hasattr(t, "compute") for t in found.values()):
        return Replayed(found)
    return found


def _without_prefix(recorded: Mapping) -> dict:
    return {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in recorded.items()
        if name.startswith(_PREFIX)
    }


def _converted(
    path: Path,
    part: Component,
    module: torch.nn.Module,
    recorded: dict,
    stored: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
) -> dict:
    """Return what Diffusers' converter makes of an original layout.

    Raises
    ------
    BrokenModelError
        If the names are nearly those of Diffusers but not quite, or the converter fails.
    """
    # More than half: Diffusers' own layout, damaged. Some originals share a few names with it.
    nearly = 2 * len(recorded.keys() & wanted.keys()) > len(wanted)
    try:
        converter = _converter(part, module)
        found = _run_converter(converter, module, recorded, stored)
    except UnsupportedError:
        if nearly:
            return dict(recorded)
        raise
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if nearly:
            return dict(recorded)
        raise BrokenModelError(
            f"{path} isn't the {part.cls} that {part.folder} describes: Diffusers can't convert it "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    if nearly and found.keys() != wanted.keys():
        return dict(recorded)
    _check_all_used(path, part, recorded, found)
    return found


def _run_converter(
    converter: Callable, module: torch.nn.Module, recorded: dict, stored: Mapping
) -> dict:
    config = dict(module.config)

    def convert(tensors: Mapping) -> dict:
        if type(module).__name__ in _PREFIXED_CLASSES and not any(
            name.startswith(_PREFIX) for name in tensors
        ):
            tensors = {_PREFIX + name: tensors[name] for name in tensors}
        # Converters empty the dictionary they are given, and some give None for what isn't there.
        found = converter(checkpoint=dict(tensors), config=config)
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    with quiet_libraries():
        try:
            found = convert(recorded)
        except (NotRecordable, TypeError, RuntimeError, AttributeError):
            # Not all of torch works on shapes alone; what fails now fails for good.
            found = convert(stored)
    return _without_ignored(found, module)


def _without_ignored(tensors: Mapping, module: torch.nn.Module) -> dict:
    """Leave out what the class itself says its files may hold too many of."""
    patterns = module._keys_to_ignore_on_load_unexpected or ()
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not any(re.search(pattern, name) for pattern in patterns)
    }


def _converter(part: Component, module: torch.nn.Module) -> Callable:
    """Return Diffusers' converter of a class's original layout, for the module's own width."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    for cls in component_class(part).__mro__:
        entry = SINGLE_FILE_LOADABLE_CLASSES.get(cls.__name__)
        if entry is None:
            continue
        converter = entry["checkpoint_mapping_fn"]
        if cls.__name__ in _FIXED_WIDTH_CLASSES:
            width = module.config["num_attention_heads"] * module.config["attention_head_dim"]
            converter = with_width(converter, width)
        return converter
    raise UnsupportedError(
        f"this file's tensors don't have Diffusers' names, and Diffusers converts no original "
        f"layout of {part.cls}; save the model with save_pretrained and use load"
    )


def with_width(converter: Callable, width: int) -> Callable:
    """Return a copy of a converter in which the literal width of FLUX.1 is another one.

    Diffusers 0.42 writes 3072 where its config says the width; a version that reads the config
    has no such literal, and its converter comes back unchanged.
    """
    return types.FunctionType(
        _replaced(converter.__code__, width),
        converter.__globals__,
        converter.__name__,
        converter.__defaults__,
        converter.__closure__,
    )


def _replaced(code: types.CodeType, width: int) -> types.CodeType:
    def replaced(value):
        if isinstance(value, types.CodeType):
            return _replaced(value, width)  # functions inside the function
        return width if type(value) is int and value == _FIXED_WIDTH else value

    return code.replace(co_consts=tuple(replaced(value) for value in code.co_consts))


def _check_all_used(path: Path, part: Component, recorded: Mapping, found: Mapping) -> None:
    """Refuse a file of which tensors would silently go unused.

    Whole checkpoints hold text encoders and a VAE too, under other prefixes: those may.
    """
    if not all(hasattr(t, "sources") for t in found.values()):
        return  # converted from real tensors: not known
    used = frozenset().union(*(t.sources for t in found.values()))
    prefix = _PREFIX if all(name.startswith(_PREFIX) for name in used) else ""
    unused = sorted(n for n in recorded.keys() - used if n.startswith(prefix))
    if unused:
        raise BrokenModelError(
            f"{path} holds {_counted(unused)} that {part.cls} as {part.folder} describes it has "
            "no place for"
        )


def _check_tensors(path: Path, part: Component, found: Mapping, wanted: Mapping) -> None:
    """Make sure that names, shapes and kinds are those of the configuration.

    Raises
    ------
    BrokenModelError
        With the first name of each kind that differs.
    """
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        says = [f"lacks {_counted(missing)}"] if missing else []
        says += [f"has {_counted(extra)} too many"] if extra else []
        raise BrokenModelError(
            f"{path} isn't the {part.cls} that {part.folder} describes: it {' and '.join(says)}"
        )
    for name, like in wanted.items():
        tensor = found[name]
        if tensor.shape != like.shape:
            raise BrokenModelError(
                f"{path} isn't the {part.cls} that {part.folder} describes: {name!r} has the shape "
                f"{tuple(tensor.shape)}, not {tuple(like.shape)}"
            )
        if like.is_floating_point() and not tensor.is_floating_point():
            raise BrokenModelError(
                f"{path} is quantized already: {name!r} is stored as {_dtype_name(tensor)}; an "
                "unquantized file was expected"
            )


def _counted(names: list[str]) -> str:
    if len(names) == 1:
        return f"the tensor {names[0]!r}"
    return f"{len(names)} tensors ({names[0]!r} for one)"


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
