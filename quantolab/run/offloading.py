"""A pipeline that an accelerator doesn't hold whole: its parts come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..backends import quantized_inputs
from ..devices import free_bytes, synchronize
from ..measure.held_bytes import weight_bytes
from .ways import RESIDENT

_TILE = 512  # pixels, as the plan counts; a VAE's own tile may be as large as the picture

AHEAD = (
    "while a block computes, the next one comes (stream, pinned memory), a block more than planned"
)


def offload(
    pipe: Any, denoisers: Iterable[str], way: str, device: str, *, ahead: bool = False
) -> list[str]:
    """Have a pipeline that lies in the processor's memory run on a device.

    In groups, a block comes while the one before it computes, where there is room for it and that
    is safe: see `_fetches`.

    Parameters
    ----------
    pipe : DiffusionPipeline
        On the CPU, unless all of it is on the device already.
    denoisers : iterable of str
        Names of the parts that are offloaded in groups, if it is by groups.
    way : str
        One of `ways.OFFLOADS`.
    device : str
        The accelerator.
    ahead : bool
        Whether there is room on the device for the next block, beside the one that computes.

    Returns
    -------
    list of str
        What is to be said of it.
    """
    if way == RESIDENT:
        return []
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
        return []
    if way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
        return []
    in_groups, said = set(denoisers), []
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        if name not in in_groups:
            part.to(device)
            continue
        fetches = ahead and _fetches(part, device)
        part.enable_group_offload(
            torch.device(device), offload_type="block_level", num_blocks_per_group=1,
            use_stream=fetches,
        )  # fmt: skip
        said += [f"{name}: {AHEAD}"] if fetches else []
    return said


def _fetches(part: torch.nn.Module, device: str) -> bool:
    """Return whether the blocks of a part can be fetched ahead: Diffusers' ``use_stream``.

    It keeps a pinned copy of the weights in the processor's memory, beside the weights themselves
    until all are copied, and puts that back after each block, whatever became of what was on the
    device. So there has to be room; and nothing may be written into the part while it runs, as
    scales are that calibrating finds.
    """
    if not hasattr(getattr(torch, device.partition(":")[0]), "Stream") or quantized_inputs(part):
        return False
    room = free_bytes("cpu")
    return room is not None and weight_bytes(part) < room and come_through_pinned(part, device)


def come_through_pinned(part: torch.nn.Module, device: str) -> bool:
    """Return whether weights stay the same on their way to a device through pinned memory.

    Tried before it is relied on, with the smallest weight of each class: whether a quantized one
    can be pinned is up to its class, of which Quanto has its own for CUDA, and other backends
    theirs. Weights that quantolab made by Quanto are pinned part by part.
    """
    smallest: dict[tuple[type, torch.dtype], torch.Tensor] = {}
    for tensor in (*part.parameters(), *part.buffers()):
        kind = (type(tensor), tensor.dtype)
        if kind not in smallest or tensor.numel() < smallest[kind].numel():
            smallest[kind] = tensor
    try:
        return all(_comes_through(tensor.data, device) for tensor in smallest.values())
    except (RuntimeError, NotImplementedError, TypeError, AttributeError):
        return False  # as many ways to fail as there are classes


def _comes_through(tensor: torch.Tensor, device: str) -> bool:
    pinned = tensor.pin_memory()
    moved = pinned.to(device, non_blocking=True)
    synchronize(device)
    plainly = tensor.to(device)
    same = type(moved) is type(plainly) and torch.equal(_bytes(moved), _bytes(plainly))
    return pinned.is_pinned() and same


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    values = tensor if plain else tensor.dequantize()
    return values.detach().contiguous().reshape(-1).view(torch.uint8)


def decode_in_tiles(pipe: Any) -> list[str]:
    """Have a pipeline's VAE decode in tiles, and return what is to be said of it.

    Tiles and no slices: Diffusers' slicing decodes the pictures of a batch one by one, and changes
    nothing for the single pictures of a comparison. Where several are made at once, as `advise`
    does, they are decoded so.
    """
    vae = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        return []
    vae.enable_tiling()
    side, latents = (getattr(vae, f"tile_{n}_min_size", None) for n in ("sample", "latent"))
    if isinstance(side, int) and isinstance(latents, int) and side > _TILE:
        vae.tile_sample_min_size, vae.tile_latent_min_size = _TILE, latents * _TILE // side
    return ["its VAE decodes in tiles"]
