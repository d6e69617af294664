"""Put the trained parts together as an ordinary FluxPipeline."""

from __future__ import annotations

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from .denoiser import Denoiser
from .words import word_tokenizer

_SHIFT = 2.0
"""How far the sampler's steps lean towards the noisy end, where the layout is decided."""


def assemble(vae: AutoencoderKL, model: Denoiser) -> FluxPipeline:
    """Make a pipeline of these parts.

    Parameters
    ----------
    vae
        The autoencoder.
    model
        The transformer and text encoders.
    """
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=_SHIFT),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=word_tokenizer(),
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=word_tokenizer(),
        transformer=model.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
