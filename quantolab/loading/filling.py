"""A skeleton gets its weights one layer at a time, each quantized before the next is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..backends import check_supported, door
from ..errors import BrokenModelError
from ..models.layers import kept_in_float32
from ..models.resolving import Resolved, Share, as_share, resolve
from ..recipes import Recipe
from .moving import Mover
from .placing import place_buffers, put_module, put_tensor, release_memory
from .report import QuantizeReport, finish

_HOLES = 1 << 24
"""Bytes of weights quantized, after which what that has freed goes back to the system: the C
library keeps it for later, in holes that the next layer needn't fit into."""


def fill_skeleton(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    recipe: Recipe | Share,
    component: str,
    *,
    dtype: str,
    device: str,
    strict_skip: bool = True,
    release: Callable[[], None] = lambda: None,
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Fill a skeleton with tensors, each quantized and released before the next is read.

    Parameters
    ----------
    module : torch.nn.Module
        From `build_skeleton`, with its buffers kept.
    tensors : mapping of str to torch.Tensor
        Exactly the names of the module's state dict; each is asked for once.
    recipe, component, dtype, device, strict_skip
        As for `load_component`, already resolved.
    release : callable
        Called when no tensor that was read is needed any longer.

    Raises
    ------
    ArgumentError
        If a skip pattern matches no layer.
    BrokenModelError
        If a weight holds NaN or infinity.
    UnsupportedError
        If a layer can't have its word, before any weight is read.
    """
    share = as_share(recipe, component)
    resolved = resolve(module, share, dtype=dtype, strict=strict_skip)
    check_supported(((c.layer, c.word) for c in resolved.quantized), dtype, device)
    move = Mover(device)
    applied = _fill(module, tensors, resolved, dtype, move, release)
    move.wait()
    place_buffers(module, device)  # those that no file holds
    release_memory()
    return module, finish(module, share.recipe, resolved, applied)


def _fill(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    resolved: Resolved,
    dtype: str,
    move: Mover,
    release: Callable[[], None],
) -> list[tuple[str, str]]:
    """Put every tensor in its place; return (path, cure) of the layers that needed one."""
    waiting = {f"{choice.layer.path}.weight": choice for choice in resolved.quantized}
    owners = dict(module.named_modules(remove_duplicate=False))
    applied: list[tuple[str, str]] = []
    freed = 0
    for name in tensors:
        choice = waiting.get(name)
        if choice is None:
            if not _belongs_to(name, waiting):  # a quantized layer's bias comes with its weight
                put_tensor(owners, name, _cast(tensors[name], name, module, dtype, move))
                release()
            continue
        layer, bias = choice.layer, None
        if layer.bias:
            name = f"{layer.path}.bias"
            bias = _cast(tensors[name], name, module, dtype, move)
        weight = move(tensors[f"{layer.path}.weight"])  # cast while it is quantized
        if not weight.is_floating_point():
            raise BrokenModelError(
                f"the weight of layer {layer.path!r} is stored as {weight.dtype}: it is quantized "
                "already; an unquantized model was expected"
            )
        quantized, cures = door(choice.word, "layers").quantize_linear(
            layer, choice.word, weight, bias, dtype=getattr(torch, dtype)
        )
        freed += weight.nbytes
        del weight
        applied += [(layer.path, cure) for cure in cures]
        put_module(module, layer.path, quantized)
        release()
        if freed > _HOLES:
            release_memory()
            freed = 0
    return applied


def _belongs_to(name: str, waiting: Mapping[str, object]) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "bias" and f"{owner}.weight" in waiting


def _cast(
    value: torch.Tensor, name: str, module: torch.nn.Module, dtype: str, move: Mover
) -> torch.Tensor:
    """Return a tensor cast as Diffusers casts, in memory of its own.

    Memory-mapped tensors may be misaligned, and would keep the file mapped.
    """
    target = value.dtype
    if value.is_floating_point():
        target = torch.float32 if kept_in_float32(module, name, dtype) else getattr(torch, dtype)
    if value.dtype == target and move.stages(value):
        return move(value)
    return value.to(device=move.device, dtype=target, copy=True)
