"""The demo model's autoencoder: 128x128 pixels to 16x16 latents and back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .drawing import SIZE
from .loop import Training
from .pool import to_input

CHANNELS = 12
"""Latent channels."""

_KL = 3e-4
_OFF = 0.2
"""Largest noise on the (scaled) latents that the decoder learns to forgive."""


def build_vae(width: int = 16) -> AutoencoderKL:
    """Make a new autoencoder.

    Parameters
    ----------
    width
        Channels at full resolution; those of the lower resolutions follow.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 3 * width, 4 * width),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def _crops(images: torch.Tensor, n: int, size: int) -> torch.Tensor:
    """Random square cut-outs of random pictures."""
    picks = torch.randint(len(images), (n,)).tolist()
    corners = torch.randint(SIZE - size + 1, (n, 2)).tolist()
    parts = [
        images[i, :, y : y + size, x : x + size] for i, (y, x) in zip(picks, corners, strict=True)
    ]
    return to_input(torch.stack(parts)).to(memory_format=torch.channels_last)


def _loss(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(x).latent_dist
        y = vae.decode(latents.sample()).sample
    spread = latents.kl().mean() / latents.mean[0].numel()
    return _difference(y.float(), x) + _KL * spread


def _difference(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    pixel = (y - x).abs().mean() + (y - x).pow(2).mean()
    # Differences between neighbours: what makes edges sharp and large areas even.
    edges = (y.diff(dim=2) - x.diff(dim=2)).abs().mean()
    edges = edges + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    return pixel + edges


def train_vae(
    images: torch.Tensor, steps: int, folder: Path, width: int = 16, batch: int = 16
) -> tuple[AutoencoderKL, float]:
    """Train the autoencoder, or go on where an interrupted run stopped.

    Parameters
    ----------
    images
        Pictures, uint8 of shape (n, 3, height, width).
    steps
        Optimizer steps.
    folder
        Where checkpoints are kept.
    width
        Channels at full resolution.
    batch
        Quarter pictures in a step.

    Returns
    -------
    tuple
        The autoencoder, with averaged weights and its scaling factors set, and the seconds spent.
    """
    vae = build_vae(width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.98), weight_decay=1e-4)
    training = Training("vae", vae, [(optimizer, 3e-3)], folder, steps)
    while not training.done:
        # Quarters hold as many edges for their cost as anything; the last fifth sees whole
        # pictures, whose normalization statistics are those of use.
        whole = training.step >= 0.8 * steps
        x = _crops(images, batch // 4 if whole else batch, SIZE if whole else SIZE // 2)
        training.update(_loss(vae, x))
    seconds = training.finish()
    vae.eval()
    vae.register_to_config(**_scale(vae, images, folder / "scale.json"))
    return vae, seconds


def _scale(vae: AutoencoderKL, images: torch.Tensor, path: Path) -> dict[str, float]:
    """Measure, once, what brings the latents to zero mean and unit variance."""
    if not path.exists():
        latents = encode(vae, images[:2000])
        scale = {
            "shift_factor": latents.mean().item(),
            "scaling_factor": 1 / latents.std().item(),
        }
        path.write_text(json.dumps(scale))
    return json.loads(path.read_text())


def tune_decoder(
    vae: AutoencoderKL,
    images: torch.Tensor,
    latents: torch.Tensor,
    steps: int,
    folder: Path,
    batch: int = 6,
) -> float:
    """Train the decoder alone on latents that are a little off, as a denoiser's are.

    The latents keep their meaning, so this can come after the denoiser's training.

    Parameters
    ----------
    vae
        The trained autoencoder.
    images
        Pictures, uint8.
    latents
        Their scaled latents.
    steps
        Optimizer steps.
    folder
        Where checkpoints are kept.
    batch
        Pictures in a step.

    Returns
    -------
    float
        Seconds spent.
    """
    decoder = vae.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.98), weight_decay=1e-4)
    training = Training("decoder", decoder, [(optimizer, 2e-3)], folder, steps)
    while not training.done:
        picks = torch.randint(len(images), (batch,))
        x = to_input(images[picks]).to(memory_format=torch.channels_last)
        off = _OFF * torch.rand(batch, 1, 1, 1) * torch.randn_like(latents[picks])
        z = (latents[picks] + off) / vae.config.scaling_factor + vae.config.shift_factor
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder(z.to(memory_format=torch.channels_last))
        training.update(_difference(y.float(), x))
    return training.finish()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor, batch: int = 50) -> torch.Tensor:
    """Latents of pictures, as the autoencoder gives them (not yet scaled).

    Parameters
    ----------
    vae
        The autoencoder.
    images
        Pictures, uint8.
    batch
        How many at a time.
    """
    parts = []
    for part in images.split(batch):
        x = to_input(part).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(x).latent_dist.mean.float())
    return torch.cat(parts)
