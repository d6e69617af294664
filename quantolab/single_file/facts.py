"""What a single file holds and how it is laid out, from its header alone: no weight is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BrokenModelError, QuantolabError
from ..files.foreign import check_plain
from ..models.skeleton import build_skeleton
from ..models.source import Component
from .names import PREFIX, as_diffusers_names, dtype_name
from .reading import check_path, described_by, open_file, own_dtypes


@dataclass(frozen=True)
class SingleFileFacts:
    """One file, seen through its header."""

    path: Path
    file_bytes: int
    tensors: int
    stored_bytes: dict[str, int]
    """Bytes by the dtype they are stored in, the largest first."""
    layout: str
    """How its tensors are named, in words."""
    component: Component | None
    """What it holds, by the configuration; None if there is none."""
    published_as: str | None
    """The Hub id whose configuration Diffusers would take for it, where Diffusers knows one."""
    problem: QuantolabError | None
    """Why `load_single_file` would refuse it; None if it wouldn't."""


def single_file_facts(
    path: str | os.PathLike,
    config: str | os.PathLike | None = None,
    component: str | None = None,
) -> SingleFileFacts:
    """Return what a file holds and whether `load_single_file` takes it, without reading a weight.

    Parameters
    ----------
    path, config, component
        As for `load_single_file`.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If the file isn't there, isn't a file that is read, or its header can't be.
    """
    path = check_path(path, allow_pickle=False)
    _, shapes = open_file(path)
    part, wanted, problem = None, None, None
    try:
        check_plain(path, own_dtypes(shapes))
        part = described_by(path, config, component)
        module = build_skeleton(part)
        wanted = module.state_dict().keys()
        _check_layout(path, part, module, shapes)
    except QuantolabError as error:
        problem = error
    return SingleFileFacts(
        path,
        path.stat().st_size,
        len(shapes),
        _stored_bytes(shapes),
        _layout(shapes, wanted),
        part,
        _published_as(shapes),
        problem,
    )


def _check_layout(path: Path, part: Component, module: torch.nn.Module, shapes: Mapping) -> None:
    try:
        # Shapes stand for the weights, so that no converter can read any.
        as_diffusers_names(path, part, module, shapes, shapes)
    except BrokenModelError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        # A converter that asks for values: only loading tells whether it likes them.


def _stored_bytes(shapes: Mapping[str, torch.Tensor]) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in shapes.values():
        name = dtype_name(tensor)
        found[name] = found.get(name, 0) + tensor.numel() * tensor.element_size()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _layout(names: Iterable[str], wanted: Iterable[str] | None) -> str:
    names = set(names)
    inside = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    under = f" under {PREFIX!r}" if inside else ""
    others = len(names) - len(inside) if inside else 0
    more = f", and {others} other tensors beside it" if others else ""
    if wanted is None:
        return f"not known without a configuration{under and ';' + under}{more}"
    # As when loading: sharing a few names with Diffusers' layout isn't being it.
    shared = len((inside or names) & set(wanted))
    kind = "Diffusers' own" if 2 * shared > len(set(wanted)) else "original"
    return f"{kind}{under}{more}"


def _published_as(shapes: Mapping[str, torch.Tensor]) -> str | None:
    from diffusers.loaders.single_file_utils import (
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    try:
        kind = infer_diffusers_model_type(shapes)
    except (KeyError, IndexError, AttributeError):
        return None
    # "v1" is what Diffusers says of everything that it doesn't know.
    known = {} if kind == "v1" else DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    return known.get("pretrained_model_name_or_path")
