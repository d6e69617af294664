"""Small inputs that a component's forward takes, made from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_TOKENS = 16  # of text; over 8, so that kernels for many rows run
_SIDE = 8  # latents along one side of a picture


def sample_inputs(
    module: torch.nn.Module, dtype: torch.dtype, device: str = "cpu", seed: int = 0
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
    """
    make = _MAKERS.get(type(module).__name__)
    if make is None:
        return None
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    inputs = make(module.config, normal, dtype)
    return {name: v.to(device) if torch.is_tensor(v) else v for name, v in inputs.items()}


def first_output(module: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the first tensor of what a component's forward gives, on the CPU."""
    with torch.no_grad():
        output = module(**inputs)
    if not torch.is_tensor(output):
        output = output[0]
    return output.detach().cpu()


def _flux(config, normal: Callable, dtype) -> dict:
    inputs = {
        "hidden_states": normal(1, _SIDE**2, config.in_channels),
        "encoder_hidden_states": normal(1, _TOKENS, config.joint_attention_dim),
        "pooled_projections": normal(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5], dtype=dtype),
        "img_ids": torch.zeros(_SIDE**2, 3),
        "txt_ids": torch.zeros(_TOKENS, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.tensor([3.5], dtype=dtype)
    return inputs


def _sd3(config, normal: Callable, dtype) -> dict:
    return {
        "hidden_states": normal(1, config.in_channels, _SIDE, _SIDE),
        "encoder_hidden_states": normal(1, _TOKENS, config.joint_attention_dim),
        "pooled_projections": normal(1, config.pooled_projection_dim),
        "timestep": torch.tensor([500.0], dtype=dtype),
    }


def _pixart(config, normal: Callable, dtype) -> dict:
    side = config.sample_size
    extra: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions or (
        config.use_additional_conditions is None and side == 128
    ):
        extra = {"resolution": normal(1, 2), "aspect_ratio": normal(1, 1)}
    return {
        "hidden_states": normal(1, config.in_channels, side, side),
        "encoder_hidden_states": normal(1, _TOKENS, config.caption_channels),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": extra,
    }


def _sana(config, normal: Callable, dtype) -> dict:
    return {
        "hidden_states": normal(1, config.in_channels, _SIDE, _SIDE),
        "encoder_hidden_states": normal(1, _TOKENS, config.caption_channels),
        "timestep": torch.tensor([500]),
    }


def _auraflow(config, normal: Callable, dtype) -> dict:
    return {
        "hidden_states": normal(1, config.in_channels, _SIDE, _SIDE),
        "encoder_hidden_states": normal(1, _TOKENS, config.joint_attention_dim),
        "timestep": torch.tensor([0.5], dtype=dtype),
    }


def _qwen_image(config, normal: Callable, dtype) -> dict:
    return {
        "hidden_states": normal(1, _SIDE**2, config.in_channels),
        "encoder_hidden_states": normal(1, _TOKENS, config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(1, _TOKENS, dtype=torch.long),
        "timestep": torch.tensor([0.5], dtype=dtype),
        "img_shapes": [[(1, _SIDE, _SIDE)]],
    }


def _wan(config, normal: Callable, dtype) -> dict:
    return {
        "hidden_states": normal(1, config.in_channels, 2, _SIDE, _SIDE),
        "encoder_hidden_states": normal(1, _TOKENS, config.text_dim),
        "timestep": torch.tensor([500]),
    }


def _ltx(config, normal: Callable, dtype) -> dict:
    return {
        "hidden_states": normal(1, 2 * _SIDE * _SIDE, config.in_channels),
        "encoder_hidden_states": normal(1, _TOKENS, config.caption_channels),
        "timestep": torch.tensor([500.0], dtype=dtype),
        "encoder_attention_mask": torch.ones(1, _TOKENS, dtype=torch.bool),
        "num_frames": 2,
        "height": _SIDE,
        "width": _SIDE,
    }


def _unet(config, normal: Callable, dtype) -> dict:
    side = 2 ** len(config.block_out_channels)  # it is halved in all blocks but one
    width = config.cross_attention_dim
    width = width[0] if isinstance(width, (list, tuple)) else width
    inputs: dict[str, Any] = {
        "sample": normal(1, config.in_channels, side, side),
        "encoder_hidden_states": normal(1, _TOKENS, width),
        "timestep": torch.tensor([500]),
    }
    if config.addition_embed_type == "text_time":  # SDXL: six sizes and the pooled text
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": normal(1, pooled),
            "time_ids": torch.ones(1, 6),
        }
    return inputs


def _text(config, normal: Callable, dtype) -> dict:
    # The last token is the highest, which CLIP takes for the end of the text.
    tokens = torch.arange(_TOKENS) * (config.vocab_size - 1) // (_TOKENS - 1)
    return {"input_ids": tokens[None], "attention_mask": torch.ones(1, _TOKENS, dtype=torch.long)}


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
