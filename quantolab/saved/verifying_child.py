"""What a fresh process does to verify a saved model: load it one way, compare, run it once."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..backends import import_layers
from ..devices import resolve_device
from ..files.writing import raw_bytes
from ..loading.component import load_component
from ..measure.held_bytes import inner_tensors
from ..models.resolving import share_of
from ..models.sample_inputs import first_output, sample_inputs
from ..models.skeleton import component_class, dtype_keyword, quiet_libraries
from ..models.source import find_model
from ..processes.jobs import Desk, JobKind
from ..recipes import Recipe
from .folder import SavedFolder, layer_words, open_saved
from .pieces import pieces
from .restoring import load_saved_component
from .writing import dtype_name


@dataclass(frozen=True)
class Anew:
    """The original, to be quantized anew."""

    model: str
    component: str | None
    recipe: Recipe
    dtype: str
    variant: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class LoadJob:
    """Load a saved component one way."""

    folder: Path
    way: str
    """``"quantolab"``, ``"diffusers"`` (plain) or ``"anew"``."""
    device: str
    anew: Anew | None = None


@dataclass(frozen=True)
class LoadFound:
    """What a module turned out to be."""

    cls: str
    recipe: str
    dtype: str
    difference: float
    """The greatest between its weights and those in the folder's files."""
    output: Path | None
    """Where its output lies; None if no inputs are known for its class."""
    seconds: float | None = None
    """To load it."""


LOAD = JobKind(f"{__name__}:load_one_way", LoadJob, LoadFound)


def load_one_way(asked: LoadJob, desk: Desk) -> LoadFound:
    """Load a saved component, compare its weights with the files, and run it once."""
    saved = open_saved(asked.folder)
    started = time.perf_counter()
    module = _load(asked, saved)
    seconds = time.perf_counter() - started
    return describe_loaded(module, saved, desk.folder, seconds)


def describe_loaded(
    module: torch.nn.Module, saved: SavedFolder, place: Path, seconds: float | None = None
) -> LoadFound:
    """Return how a module differs from a folder's files; its output is kept in `place`."""
    report = getattr(module, "quantize_report", None)
    dtype = _dtype(saved)
    # What Diffusers reloads says "meta" on the outside; its inner tensors say where they are.
    device = next(str(plain.device) for p in module.parameters() for _, plain in inner_tensors(p))
    inputs, output = sample_inputs(module, dtype, device), None
    if inputs is not None:
        output = place / "output.pt"
        torch.save(first_output(module, inputs), output)
    return LoadFound(
        type(module).__name__,
        str(report.recipe) if report is not None else "",
        dtype_name(dtype),
        weights_difference(module, saved),
        output,
        seconds,
    )


def _load(asked: LoadJob, saved: SavedFolder) -> torch.nn.Module:
    device = resolve_device(asked.device)
    if asked.anew is not None:
        name = asked.anew.component
        named = {"variant": asked.anew.variant, "revision": asked.anew.revision}
        source = find_model(asked.anew.model, weights=(name,), **named)
        part = source.component(name)
        share = share_of(asked.anew.recipe, source, part.name)
        options = {"dtype": asked.anew.dtype, "device": device, "strict_skip": False}
        return load_component(part, share, **options)[0]
    if asked.way == "quantolab":
        return load_saved_component(saved, device=device)
    import_layers(set(layer_words(saved).values()))  # without what else importing them does
    cls = component_class(saved.component)
    name = dtype_keyword(saved.component.library)
    with quiet_libraries():
        module = cls.from_pretrained(
            str(saved.folder), local_files_only=True, **{name: _dtype(saved)}
        )
    # Moving to a device makes Quanto choose its kernels anew: not done where it isn't needed.
    return module if device == "cpu" else module.to(device)


def _dtype(saved: SavedFolder) -> torch.dtype:
    if saved.record is not None:
        return getattr(torch, saved.record.dtype)
    scales = [e.spec.dtype for n, e in saved.entries.items() if n.endswith("weight._scale")]
    floats = [e.spec.dtype for e in saved.entries.values() if e.spec.dtype.is_floating_point]
    return (scales or floats or [torch.float32])[0]


def weights_difference(module: torch.nn.Module, saved: SavedFolder) -> float:
    """Return the greatest difference between a module's weights and those in a folder's files.

    Packed values count as the bytes they are stored in. Infinity if names or shapes differ.
    """
    greatest = 0.0
    left = set(saved.entries)
    with ExitStack() as files:
        stored = _as_safetensors_reads(saved, files)
        for piece in pieces(module):
            for spec, value in zip(piece.specs, piece.values(), strict=True):
                if spec.name not in left:
                    return math.inf
                left.discard(spec.name)
                other = stored[spec.name].get_tensor(spec.name)
                if (other.shape, other.dtype) != (value.shape, value.dtype):
                    return math.inf
                if raw_bytes(value) != raw_bytes(other):
                    apart = (value.detach().cpu().double() - other.double()).abs().max().item()
                    # Unequal bytes are never a difference of 0; NaN isn't either.
                    greatest = max(greatest, apart if apart > 0 else math.inf)
    return math.inf if left else greatest


def _as_safetensors_reads(saved: SavedFolder, files: ExitStack) -> dict[str, Any]:
    """Return an open file for each tensor: safetensors' own reader, not the one to be verified."""
    from safetensors import safe_open

    opened = [files.enter_context(safe_open(p, framework="pt")) for p, _ in saved.files]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118
