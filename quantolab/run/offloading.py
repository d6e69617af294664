"""A pipeline that an accelerator doesn't hold whole: its parts come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .ways import RESIDENT

_TILE = 512  # pixels, as the plan counts; a VAE's own tile may be as large as the picture


def offload(pipe: Any, denoisers: Iterable[str], way: str, device: str) -> None:
    """Have a pipeline that lies in the processor's memory run on a device.

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
    """
    if way == RESIDENT:
        return
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        in_groups = set(denoisers)
        for name, part in pipe.components.items():
            if not isinstance(part, torch.nn.Module):
                continue
            if name in in_groups:
                part.enable_group_offload(
                    torch.device(device), offload_type="block_level", num_blocks_per_group=1
                )
            else:
                part.to(device)


def decode_in_tiles(pipe: Any) -> list[str]:
    """Have a pipeline's VAE decode in tiles, and return what is to be said of it."""
    vae = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        return []
    vae.enable_tiling()
    side, latents = (getattr(vae, f"tile_{n}_min_size", None) for n in ("sample", "latent"))
    if isinstance(side, int) and isinstance(latents, int) and side > _TILE:
        vae.tile_sample_min_size, vae.tile_latent_min_size = _TILE, latents * _TILE // side
    return ["its VAE decodes in tiles"]
