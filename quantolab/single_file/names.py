"""A file's tensors under the names of Diffusers, converted from the makers' own where need be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..errors import BrokenModelError, UnsupportedError, first_line
from ..files.lazy_tensors import NotRecordable, Replayed, record
from ..models.converters import converter_for
from ..models.skeleton import component_class, quiet_libraries
from ..models.source import Component

PREFIX = "model.diffusion_model."
"""What ComfyUI and Stability put before the denoiser's names."""

# Diffusers' converter of U-Nets takes nothing that lies outside that prefix.
_PREFIXED_CLASSES = ("UNet2DConditionModel",)


def as_diffusers_names(
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
        name.removeprefix(PREFIX): tensor
        for name, tensor in recorded.items()
        if name.startswith(PREFIX)
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
            f"({type(error).__name__}: {first_line(error)})"
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
            name.startswith(PREFIX) for name in tensors
        ):
            tensors = {PREFIX + name: tensors[name] for name in tensors}
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
    converter = converter_for(component_class(part), module.config)
    if converter is None:
        raise UnsupportedError(
            f"this file's tensors don't have Diffusers' names, and Diffusers converts no original "
            f"layout of {part.cls}; save the model with save_pretrained and use load"
        )
    return converter


def _check_all_used(path: Path, part: Component, recorded: Mapping, found: Mapping) -> None:
    """Refuse a file of which tensors would silently go unused.

    Whole checkpoints hold text encoders and a VAE too, under other prefixes: those may.
    """
    if not all(hasattr(t, "sources") for t in found.values()):
        return  # converted from real tensors: not known
    used = frozenset().union(*(t.sources for t in found.values()))
    prefix = PREFIX if all(name.startswith(PREFIX) for name in used) else ""
    unused = sorted(n for n in recorded.keys() - used if n.startswith(prefix))
    if unused:
        raise BrokenModelError(
            f"{path} holds {counted(unused)} that {part.cls} as {part.folder} describes it has "
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
        says = [f"lacks {counted(missing)}"] if missing else []
        says += [f"has {counted(extra)} too many"] if extra else []
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
                f"{path} is quantized already: {name!r} is stored as {dtype_name(tensor)}; an "
                "unquantized file was expected"
            )


def counted(names: list[str]) -> str:
    """Return one name, or how many there are with the first of them."""
    if len(names) == 1:
        return f"the tensor {names[0]!r}"
    return f"{len(names)} tensors ({names[0]!r} for one)"


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's dtype: ``"bfloat16"``."""
    return str(tensor.dtype).removeprefix("torch.")
