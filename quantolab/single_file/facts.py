"""What a single file holds and how it is laid out, from its header alone: no weight is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BrokenModelError, ModelNotFoundError, QuantolabError
from ..files.foreign import check_plain
from ..files.layout import dtype_named
from ..models.on_hub import find_file_on_hub
from ..models.skeleton import build_skeleton
from ..models.source import Component
from .names import PREFIX, as_diffusers_names, dtype_name
from .reading import (
    check_path,
    described_by,
    description,
    hub_file,
    not_here,
    open_file,
    own_dtypes,
)


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
    described_by: str | None = None
    """The model whose configuration that is, as it was named."""


def single_file_facts(
    path: str | os.PathLike,
    config: str | os.PathLike | None = None,
    component: str | None = None,
    *,
    revision: str | None = None,
) -> SingleFileFacts:
    """Return what a file holds and whether `load_single_file` takes it, without reading a weight.

    Of a file of the Hub that isn't in the cache, the header alone is fetched.

    Parameters
    ----------
    path, config, component, revision
        As for `load_single_file`.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If the file isn't there, isn't a file that is read, or its header can't be.
    """
    named = os.fspath(path)
    path, file_bytes, shapes, config = _opened(path, config, revision)
    part, wanted, problem, describing = None, None, None, None
    try:
        check_plain(path, own_dtypes(shapes))
        source, part = described_by(path if path.is_file() else named, config, component)
        describing = source.model
        module = build_skeleton(part)
        wanted = module.state_dict().keys()
        _check_layout(path, part, module, shapes)
    except QuantolabError as error:
        problem = error
    return SingleFileFacts(
        path,
        file_bytes,
        len(shapes),
        _stored_bytes(shapes),
        _layout(shapes, wanted),
        part,
        _published_as(shapes),
        problem,
        describing,
    )


def _opened(
    path: str | os.PathLike, config: str | os.PathLike | None, revision: str | None
) -> tuple[Path, int, Mapping[str, torch.Tensor], str | os.PathLike | None]:
    """Return a file's place, its bytes, its tensors' shapes, and what describes it."""
    asked = hub_file(path, allow_pickle=False, revision=revision)
    if asked is None:
        here = check_path(path, allow_pickle=False)
        return here, here.stat().st_size, open_file(here)[1], config
    try:
        file = find_file_on_hub(asked)
        if file.place.is_file():
            shapes = open_file(file.place)[1]
        else:
            shapes = {
                name: torch.empty(shape, dtype=dtype_named(dtype), device="meta")
                for name, (dtype, shape) in file.header().items()
            }
    except ModelNotFoundError as error:
        raise not_here(path, error) from None
    return file.place, file.size, shapes, description(file, config)


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
