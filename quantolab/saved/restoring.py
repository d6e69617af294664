"""Saved models come back without quantizing anything, their files read while layers are built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..backends import door, stored_form_of
from ..errors import BrokenModelError, first_line
from ..files.layout import Spec
from ..files.reading import Reading
from ..loading.moving import Mover
from ..loading.placing import put_module, put_tensor, release_memory
from ..loading.report import QuantizeReport, note_config
from ..measure.held_bytes import weight_bytes
from ..models.layers import kept_in_float32, linear_layers
from ..shapes import Layer
from .folder import SavedFolder, check_config_digest, layer_words
from .ties import tie, ties_of
from .writing import recipe_of


def load_saved_component(
    saved: SavedFolder, *, device: str, dtype: str | None = None, check: bool = True
) -> torch.nn.Module:
    """Return the component of a folder that is opened already; see `load_saved`."""
    words = layer_words(saved)
    if check:
        check_config_digest(saved)
    target = None if dtype is None else getattr(torch, dtype)
    try:
        with _reading(saved, words, device, target, check) as reading:
            module, layers, kept = waiting_module(saved, words, target)
            ties = ties_of(module, saved)
            found = _fill(module, saved, layers, reading, device, target)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        # Whatever the checks let through and torch refuses is a fault of the files.
        raise BrokenModelError(f"{saved.folder} can't be loaded: {first_line(error)}") from error
    tie(module, saved, ties)
    _move_buffers(module, saved, device, target)
    release_memory()
    note_config(module, words, kept)
    module.quantize_report = _report(module, saved, words, kept, found)
    return module


def _reading(
    saved: SavedFolder,
    words: dict[str, str],
    device: str,
    dtype: torch.dtype | None,
    check: bool,
) -> Reading:
    """Start reading a folder's files; their tensors last where none is moved or converted."""
    lasting = device == "cpu" and dtype is None and "int4" not in words.values()
    digests = saved.record.digest.files if check and saved.record is not None else {}
    return Reading(saved.files, digests, lasting=lasting)


def waiting_module(
    saved: SavedFolder, words: dict[str, str], target: torch.dtype | None = None
) -> tuple[torch.nn.Module, dict[str, Layer | None], list[str]]:
    """Return a folder's component, quantized layers in place and checked, without its tensors.

    Parameters
    ----------
    saved : SavedFolder
        From `open_saved`.
    words : dict
        From `layer_words`.
    target : torch.dtype, optional
        What it will compute in; by default what it was saved in.

    Returns
    -------
    module : torch.nn.Module
        Parameters lie on the meta device.
    layers : dict
        Shape of each quantized layer by its path; None for one that isn't Linear.
    kept : list of str
        Paths of the Linear layers that aren't quantized.

    Raises
    ------
    BrokenModelError
        If the files' tensors aren't exactly those that the component needs.
    """
    module = saved.skeleton()
    modules = dict(module.named_modules(remove_duplicate=False))
    by_path = {layer.path: layer for layer in linear_layers(module)}
    layers: dict[str, Layer | None] = {}
    entries = saved.entries
    for path, word in words.items():
        form = door(word, "stored_form")
        if form.SCALE is None:
            dtype = target or _computed_in(saved)
        else:
            scale = entries.get(_join(path, form.SCALE))
            dtype = torch.float32 if scale is None else scale.spec.dtype
        if not dtype.is_floating_point:
            raise BrokenModelError(f"{saved.folder}: the scale of layer {path!r} is {dtype}")
        old = modules.get(path)
        if old is None:
            raise BrokenModelError(
                f"{saved.folder} holds quantized weights of {path!r}, and a "
                f"{type(module).__name__} of this configuration has no such layer"
            )
        try:
            new = form.waiting_layer(old, by_path.get(path), path, word, dtype)
        except BrokenModelError as error:
            raise BrokenModelError(f"{saved.folder} holds {error}") from None
        layers[path] = by_path.get(path)
        module = put_module(module, path, new.eval())
    _check_tensors(module, saved, words)
    return module, layers, [path for path in by_path if path not in words]


def _computed_in(saved: SavedFolder) -> torch.dtype:
    """Return what a folder's model computes in, where none of its layers' tensors tells."""
    if saved.record is not None:
        return getattr(torch, saved.record.dtype)
    kinds = [e.spec.dtype for n, e in saved.entries.items() if n.endswith((".bias", ".weight"))]
    kinds = [kind for kind in kinds if kind.is_floating_point and kind.itemsize > 1]
    return max(set(kinds), key=kinds.count) if kinds else torch.bfloat16


def _check_tensors(module: torch.nn.Module, saved: SavedFolder, words: dict[str, str]) -> None:
    """Make sure that the files hold exactly the tensors that the module needs."""
    found = {name: entry.spec for name, entry in saved.entries.items()}
    needed = dict(_needed(module, words))
    missing = [n for n in needed if n not in found]
    if missing:
        tied = ties_of(module, saved)
        tied_groups = {**tied, **{first: name for name, first in tied.items()}}
        missing = [n for n in missing if tied_groups.get(n) not in found]
    unexpected = [n for n in found if n not in needed]
    if missing or unexpected:
        texts = []
        if missing:
            texts.append(f"{len(missing)} are missing, {missing[0]!r} for one")
        if unexpected:
            texts.append(f"{len(unexpected)} are unknown to it, {unexpected[0]!r} for one")
        raise BrokenModelError(
            f"the tensors in {saved.folder} aren't those of a {type(module).__name__}: "
            + ", and ".join(texts)
        )
    for name, spec in found.items():
        _check_spec(saved, spec, needed[name])


def _check_spec(saved: SavedFolder, found: Spec, needed: Spec) -> None:
    if found.shape != needed.shape:
        raise BrokenModelError(
            f"{saved.folder}: {found.name!r} has shape {list(found.shape)}, and the configuration "
            f"asks for {list(needed.shape)}"
        )
    computed = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    same = found.dtype == needed.dtype or (found.dtype in computed and needed.dtype in computed)
    if not same:
        raise BrokenModelError(
            f"{saved.folder}: {found.name!r} has dtype {found.dtype}, and {needed.dtype} is needed"
        )


def _needed(module: torch.nn.Module, words: dict[str, str]) -> Iterator[tuple[str, Spec]]:
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if path in words:
            yield from door(words[path], "stored_form").needed_specs(part, prefix).items()
            continue
        own: dict[str, Any] = {}
        part._save_to_state_dict(own, prefix, keep_vars=False)
        for name, tensor in own.items():
            if isinstance(tensor, torch.Tensor):
                yield name, Spec(name, tensor.dtype, tuple(tensor.shape))


def _fill(
    module: torch.nn.Module,
    saved: SavedFolder,
    layers: dict[str, Layer | None],
    reading: Reading,
    device: str,
    dtype: torch.dtype | None,
) -> dict[str, tuple[str, ...]]:
    """Build each quantized weight when its parts are there; return the cures of layers by path."""
    modules = dict(module.named_modules(remove_duplicate=False))
    waiting = {path: set(_form(modules[path]).weight_names(modules[path])) for path in layers}
    owners = {_join(path, name): path for path, names in waiting.items() for name in names}
    recorded = _recorded_cures(saved)
    pending: dict[str, dict[str, torch.Tensor]] = {}
    found, move = {}, Mover(device)
    for name, value in reading:
        in_float32 = dtype is not None and kept_in_float32(module, name)
        owner = owners.get(name)
        kind = torch.float32 if in_float32 else dtype
        if owner is not None and _stays(modules[owner], name.removeprefix(_join(owner, ""))):
            kind = None
        placed = _placed(value, move, kind)
        if owner is None:
            own = placed is value and not reading.lasting
            put_tensor(modules, name, placed.clone() if own else placed)
            continue
        parts = pending.setdefault(owner, {})
        parts[name.removeprefix(_join(owner, ""))] = placed
        if parts.keys() == waiting[owner]:
            found[owner] = _form(modules[owner]).fill_weight(
                modules[owner],
                pending.pop(owner),
                layers[owner],
                recorded.get(owner, frozenset()),
                own=not reading.lasting and device == "cpu",
            )
    move.wait()
    return found


def _stays(part: torch.nn.Module, name: str) -> bool:
    """Return whether a tensor of a layer's weight keeps its dtype, whatever is computed in."""
    stays = getattr(_form(part), "kept_dtype", None)
    return stays is not None and bool(stays(name))


def _form(part: torch.nn.Module) -> Any:
    return stored_form_of(part)


def _recorded_cures(saved: SavedFolder) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for path, name in saved.record.cures if saved.record is not None else ():
        found.setdefault(path, set()).add(name)
    return {path: frozenset(names) for path, names in found.items()}


def _placed(value: torch.Tensor, move: Mover, dtype: torch.dtype | None) -> torch.Tensor:
    computed = value.dtype in (torch.bfloat16, torch.float16, torch.float32)
    if dtype not in (None, value.dtype) and computed:
        return value.to(device=move.device, dtype=dtype)
    return move(value)


def _move_buffers(
    module: torch.nn.Module, saved: SavedFolder, device: str, dtype: torch.dtype | None
) -> None:
    """Move buffers that no file holds, in the dtype in which they were saved's."""
    recorded = saved.record.buffers if saved.record is not None else {}
    held = saved.entries
    for name, buffer in list(module.named_buffers()):
        if name in held or buffer.device.type == "meta":
            continue
        kind = (
            getattr(torch, recorded[name]) if dtype is None and name in recorded else buffer.dtype
        )
        owner_path, _, leaf = name.rpartition(".")
        module.get_submodule(owner_path)._buffers[leaf] = buffer.to(device=device, dtype=kind)


def _report(
    module: torch.nn.Module,
    saved: SavedFolder,
    words: dict[str, str],
    kept: list[str],
    found: dict[str, tuple[str, ...]],
) -> QuantizeReport:
    record = saved.record
    listed = words if record is None else record.quantized_layers
    reasons = record.reasons if record is not None else {}
    why = "kept where it was saved"
    return QuantizeReport(
        record.recipe if record is not None else recipe_of(words, kept),
        tuple(listed),
        tuple((path, reasons.get(path, why)) for path in kept) if words else (),
        tuple((path, name) for path in words for name in found.get(path, ())),
        weight_bytes(module),
        tuple(listed.values()),
    )


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
