"""Saved models come back without quantizing anything, their files read while layers are built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from optimum.quanto.nn import QConv2d
from optimum.quanto.tensor.grouped import grouped_shape

from ...devices import resolve_device
from ...errors import BrokenModelError, one_of
from ...models.layers import Layer, kept_in_float32, linear_layers
from ...recipes import COMPUTE_DTYPES
from . import cures
from .declaring import declare
from .files import Reading
from .generic import Spec, tied_names
from .quantize import QuantizeReport, empty_linear, put_module, put_tensor
from .reading import release_memory
from .row_wise import weight_of
from .saved_folder import SavedFolder, check_config_digest, layer_words, open_saved
from .saving import recipe_of
from .tensors import weight_bytes
from .tinygemm import optimized

_SCALES = ("input_scale", "output_scale")


def load_saved(
    folder: str | os.PathLike,
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
        from .pipelines import load_saved_pipeline

        return load_saved_pipeline(Path(folder).expanduser(), device, dtype, check)
    return load_saved_component(open_saved(folder), device=device, dtype=dtype, check=check)


def load_saved_component(
    saved: SavedFolder, *, device: str, dtype: str | None = None, check: bool = True
) -> torch.nn.Module:
    """Return the component of a folder that is opened already; see `load_saved`."""
    words = layer_words(saved)
    check = check and saved.record is not None
    if check:
        check_config_digest(saved)
    target = None if dtype is None else getattr(torch, dtype)
    try:
        with _reading(saved, words, device, target, check) as reading:
            module, layers, kept = waiting_module(saved, words)
            ties = ties_of(module, saved)
            found = _fill(module, saved, layers, reading, device, target)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        # Whatever the checks let through and torch refuses is a fault of the files.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrokenModelError(f"{saved.folder} can't be loaded: {first}") from error
    _tie(module, saved, ties)
    _move_buffers(module, saved, device, target)
    release_memory()
    declare(module, words, kept)
    module.quantize_report = _report(module, saved, layers, kept, found)
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
    digests = saved.record.digests if check else {}
    return Reading(saved.files, digests, lasting=lasting)


def waiting_module(
    saved: SavedFolder, words: dict[str, str]
) -> tuple[torch.nn.Module, dict[str, Layer | None], list[str]]:
    """Return a folder's component, quantized layers in place and checked, without its tensors.

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
        scale = entries.get(_join(path, "weight._scale"))
        dtype = torch.float32 if scale is None else scale.spec.dtype
        if not dtype.is_floating_point:
            raise BrokenModelError(f"{saved.folder}: the scale of layer {path!r} is {dtype}")
        old = modules.get(path)
        if old is None:
            raise BrokenModelError(
                f"{saved.folder} holds quantized weights of {path!r}, and a "
                f"{type(module).__name__} of this configuration has no such layer"
            )
        if path in by_path:
            new = empty_linear(by_path[path], word, dtype)
        elif isinstance(old, torch.nn.Conv2d):
            new = QConv2d.qcreate(old, "q" + word, device="meta")
            for name in _SCALES:  # Quanto makes them float32 here
                setattr(new, name, torch.empty((), dtype=dtype, device="meta"))
        else:
            raise BrokenModelError(
                f"{saved.folder} holds quantized weights of {path!r}, which is a "
                f"{type(old).__name__}"
            )
        layers[path] = by_path.get(path)
        module = put_module(module, path, new.eval())
    _check_tensors(module, saved, words)
    return module, layers, [path for path in by_path if path not in words]


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
        if path not in words:
            own: dict = {}
            part._save_to_state_dict(own, prefix, keep_vars=False)
            for name, tensor in own.items():
                if isinstance(tensor, torch.Tensor):
                    yield name, Spec(name, tensor.dtype, tuple(tensor.shape))
            continue
        dtype = part.input_scale.dtype
        shapes = _weight_shapes(part, words[path])
        if part.bias is not None:
            shapes["bias"] = (dtype, tuple(part.bias.shape))
        shapes |= dict.fromkeys(_SCALES, (dtype, ()))
        for name, (kind, shape) in shapes.items():
            yield prefix + name, Spec(prefix + name, kind, shape)


def _weight_shapes(part: torch.nn.Module, word: str) -> dict[str, tuple[torch.dtype, tuple]]:
    """Return dtype and shape of a quantized weight's tensors, from the layer's own shape."""
    size, dtype = tuple(part.weight.shape), part.input_scale.dtype
    if word in ("int8", "float8"):
        scale = (size[0],) + (1,) * (len(size) - 1)
        if size[0] == 1:  # Quanto reduces a single row along the wrong axis
            scale = size
        return {"weight._data": (part.weight_qtype.dtype, size), "weight._scale": (dtype, scale)}
    grouped = size
    if part.weight_group_size is not None:
        grouped = tuple(grouped_shape(size, 0, part.weight_group_size))
    per_byte = 8 // part.weight_qtype.bits
    scale = grouped if grouped[0] == 1 else (grouped[0],) + (1,) * (len(grouped) - 1)
    return {
        "weight._data._data": (torch.uint8, (-(-grouped[0] // per_byte), *grouped[1:])),
        "weight._scale": (dtype, scale),
        "weight._shift": (dtype, scale),
    }


def _fill(
    module: torch.nn.Module,
    saved: SavedFolder,
    layers: dict[str, Layer | None],
    reading: Reading,
    device: str,
    dtype: torch.dtype | None,
) -> dict[str, str]:
    """Build each quantized weight when its parts are there; return the cures of layers by path."""
    generic = set()
    if saved.record is not None:
        generic = {p for p, cure in saved.record.cures if cure == cures.INT4_GENERIC}
    modules = dict(module.named_modules(remove_duplicate=False))
    owners = {_join(path, "weight." + tail): path for path in layers for tail in _TAILS}
    counts = {path: 2 if _word(modules[path]) in ("int8", "float8") else 3 for path in layers}
    pending: dict[str, dict[str, torch.Tensor]] = {}
    found = {}
    for name, value in reading:
        in_float32 = dtype is not None and kept_in_float32(module, name)
        placed = _placed(value, device, torch.float32 if in_float32 else dtype)
        owner = owners.get(name)
        if owner is None:
            own = placed is value and not reading.lasting
            put_tensor(modules, name, placed.clone() if own else placed)
            continue
        parts = pending.setdefault(owner, {})
        parts[name.removeprefix(_join(owner, "weight."))] = placed
        if len(parts) == counts[owner]:
            own = not reading.lasting and device == "cpu"
            parts = pending.pop(owner)
            cure = _put_weight(modules[owner], parts, layers[owner], owner in generic, own)
            if cure:
                found[owner] = cure
    return found


_TAILS = ("_data", "_data._data", "_scale", "_shift")


def _placed(value: torch.Tensor, device: str, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is not None and value.dtype in (torch.bfloat16, torch.float16, torch.float32):
        return value.to(device=device, dtype=dtype)
    return value.to(device)


def _put_weight(
    part: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    layer: Layer | None,
    generic: bool,
    own: bool,
) -> str | None:
    """Build a layer's weight as quantizing would have: the kernel's own class where it has one.

    Returns the name of the cure that its shape asks for. With `own`, tensors that stay as they
    are get memory of their own.
    """
    kind, scale = part.weight_qtype, tensors["_scale"]
    shape = part.weight_group_size, part.weight.size(), part.weight.stride()
    cure = None
    if layer is not None:
        cure = cures.cure_for(layer, _word(part), scale.dtype, scale.device.type)
        part.plain_product = cure == cures.INT8_PLAIN
    weight = as_read = weight_of(tensors, kind, *shape)
    if cure != cures.INT4_GENERIC and not generic:
        weight = optimized(weight)
    if weight is as_read and own:
        weight = weight_of({name: t.clone() for name, t in tensors.items()}, kind, *shape)
    part._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
    return cure


def _word(part: torch.nn.Module) -> str:
    return part.weight_qtype.name.removeprefix("q").removesuffix("_e4m3fn")


def ties_of(module: torch.nn.Module, saved: SavedFolder) -> dict[str, str]:
    """Return which names are the same tensor, by the class or by the record: name to first name."""
    # On the meta device tied parameters are two; transformers keeps a list of them.
    of_class = getattr(module, "all_tied_weights_keys", None) or {}
    recorded = saved.record.tied if saved.record is not None else of_class
    own = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known = {n: first for n, first in recorded.items() if n in own and first in own}
    return {**known, **tied_names(module)}


def _tie(module: torch.nn.Module, saved: SavedFolder, ties: dict[str, str]) -> None:
    """Let modules share the tensors of which the files hold one copy."""
    held = saved.entries
    for name, first in ties.items():
        source, target = (first, name) if first in held else (name, first)
        if source not in held or target in held:
            continue
        owner_path, _, leaf = source.rpartition(".")
        shared = getattr(module.get_submodule(owner_path), leaf)
        owner_path, _, leaf = target.rpartition(".")
        owner = module.get_submodule(owner_path)
        (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = shared


def _move_buffers(
    module: torch.nn.Module, saved: SavedFolder, device: str, dtype: torch.dtype | None
) -> None:
    """Move buffers that no file holds, in the dtype in which they were saved's."""
    recorded = saved.record.buffers if saved.record is not None else {}
    held = saved.entries
    for name, buffer in list(module.named_buffers()):
        if name in held or buffer.device.type == "meta":
            continue
        kind = recorded.get(name, buffer.dtype) if dtype is None else buffer.dtype
        owner_path, _, leaf = name.rpartition(".")
        module.get_submodule(owner_path)._buffers[leaf] = buffer.to(device=device, dtype=kind)


def _report(
    module: torch.nn.Module,
    saved: SavedFolder,
    layers: dict[str, Layer | None],
    kept: list[str],
    found: dict[str, str],
) -> QuantizeReport:
    record = saved.record
    zero_rows = set()
    if record is not None:
        zero_rows = {p for p, name in record.cures if name == cures.FLOAT8_ZERO_ROWS}
    applied = []
    for path in layers:
        if path in found:
            applied.append((path, found[path]))
        if path in zero_rows:
            applied.append((path, cures.FLOAT8_ZERO_ROWS))
    if record is not None:
        recipe = record.recipe
    else:
        recipe = recipe_of({p: _word(module.get_submodule(p)) for p in layers}, kept)
    reasons = record.reasons if record is not None else {}
    why = "kept where it was saved"
    return QuantizeReport(
        recipe,
        tuple(record.quantized if record is not None else layers),
        tuple((path, reasons.get(path, why)) for path in kept) if layers else (),
        tuple(applied),
        weight_bytes(module),
    )


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
