"""Small inputs that a component's forward takes, made from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

TOKENS = 16  # of text; over 8, so that kernels for many rows run
SIDE = 8  # places (or latents) along one side of a picture


_LATENT_FRAMES = 2


def sample_inputs(
    module: torch.nn.Module,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 0,
    *,
    side: int = SIDE,
    tokens: int = TOKENS,
    frames: int = _LATENT_FRAMES,
) -> dict[str, Any] | None:
    """Return keyword arguments for a component's forward, or None for a class that isn't known.

    Parameters
    ----------
    module : torch.nn.Module
        A denoiser or text encoder of Diffusers or transformers; only its class and its
        configuration are looked at.
    dtype : torch.dtype
        Of the floating-point inputs.
    device : str
        Where they are put. Values are made on the CPU, so that they are the same everywhere.
    seed : int
        What the values are drawn with.
    side : int
        Latents along one side of the picture; for FLUX and Qwen-Image packed ones, 16 pixels each.
        PixArt and UNets take what their configuration says.
    tokens : int
        Length of the text.
    frames : int
        Latents of a video along its time; of no account for pictures.
    """
    make = _MAKERS.get(type(module).__name__)
    if make is None:
        return None
    drawer = _Drawer(dtype, torch.Generator().manual_seed(seed), side, tokens, frames)
    inputs = make(module.config, drawer)
    return {name: v.to(device) if torch.is_tensor(v) else v for name, v in inputs.items()}


@dataclass(frozen=True)
class _Drawer:
    """Draws tensors, and says how long texts and how large pictures are."""

    dtype: torch.dtype
    generator: torch.Generator
    side: int
    tokens: int
    frames: int

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)


def first_output(module: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the first tensor of what a component's forward gives, on the CPU."""
    with torch.no_grad():
        output = module(**inputs)
    if not torch.is_tensor(output):
        output = output[0]
    return output.detach().cpu()


def _flux(config, draw: _Drawer) -> dict:
    inputs = {
        "hidden_states": draw.normal(1, draw.side**2, config.in_channels),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.joint_attention_dim),
        "pooled_projections": draw.normal(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5], dtype=draw.dtype),
        "img_ids": torch.zeros(draw.side**2, 3),
        "txt_ids": torch.zeros(draw.tokens, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.tensor([3.5], dtype=draw.dtype)
    return inputs


def _sd3(config, draw: _Drawer) -> dict:
    return {
        "hidden_states": draw.normal(1, config.in_channels, draw.side, draw.side),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.joint_attention_dim),
        "pooled_projections": draw.normal(1, config.pooled_projection_dim),
        "timestep": torch.tensor([500.0], dtype=draw.dtype),
    }


def _pixart(config, draw: _Drawer) -> dict:
    side = config.sample_size
    extra: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions or (
        config.use_additional_conditions is None and side == 128
    ):
        extra = {"resolution": draw.normal(1, 2), "aspect_ratio": draw.normal(1, 1)}
    return {
        "hidden_states": draw.normal(1, config.in_channels, side, side),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.caption_channels),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": extra,
    }


def _sana(config, draw: _Drawer) -> dict:
    return {
        "hidden_states": draw.normal(1, config.in_channels, draw.side, draw.side),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.caption_channels),
        "timestep": torch.tensor([500]),
    }


def _auraflow(config, draw: _Drawer) -> dict:
    return {
        "hidden_states": draw.normal(1, config.in_channels, draw.side, draw.side),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.joint_attention_dim),
        "timestep": torch.tensor([0.5], dtype=draw.dtype),
    }


def _qwen_image(config, draw: _Drawer) -> dict:
    return {
        "hidden_states": draw.normal(1, draw.side**2, config.in_channels),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(1, draw.tokens, dtype=torch.long),
        "timestep": torch.tensor([0.5], dtype=draw.dtype),
        "img_shapes": [[(1, draw.side, draw.side)]],
    }


def _wan(config, draw: _Drawer) -> dict:
    return {
        "hidden_states": draw.normal(1, config.in_channels, draw.frames, draw.side, draw.side),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.text_dim),
        "timestep": torch.tensor([500]),
    }


def _ltx(config, draw: _Drawer) -> dict:
    return {
        "hidden_states": draw.normal(1, draw.frames * draw.side * draw.side, config.in_channels),
        "encoder_hidden_states": draw.normal(1, draw.tokens, config.caption_channels),
        "timestep": torch.tensor([500.0], dtype=draw.dtype),
        "encoder_attention_mask": torch.ones(1, draw.tokens, dtype=torch.bool),
        "num_frames": draw.frames,
        "height": draw.side,
        "width": draw.side,
    }


def _unet(config, draw: _Drawer) -> dict:
    side = 2 ** len(config.block_out_channels)  # it is halved in all blocks but one
    width = config.cross_attention_dim
    width = width[0] if isinstance(width, (list, tuple)) else width
    inputs: dict[str, Any] = {
        "sample": draw.normal(1, config.in_channels, side, side),
        "encoder_hidden_states": draw.normal(1, draw.tokens, width),
        "timestep": torch.tensor([500]),
    }
    if config.addition_embed_type == "text_time":  # SDXL: six sizes and the pooled text
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": draw.normal(1, pooled),
            "time_ids": torch.ones(1, 6),
        }
    return inputs


def _text(config, draw: _Drawer) -> dict:
    # The last token is the highest, which CLIP takes for the end of the text.
    tokens = torch.arange(draw.tokens) * (config.vocab_size - 1) // (draw.tokens - 1)
    return {
        "input_ids": tokens[None],
        "attention_mask": torch.ones(1, draw.tokens, dtype=torch.long),
    }


_MAKERS: dict[str, Callable] = {
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
    "AuraFlowTransformer2DModel": _auraflow,
    "QwenImageTransformer2DModel": _qwen_image,
    "WanTransformer3DModel": _wan,
    "LTXVideoTransformer3DModel": _ltx,
    "UNet2DConditionModel": _unet,
    "T5EncoderModel": _text,
    "UMT5EncoderModel": _text,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
}
