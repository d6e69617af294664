"""Tiny random denoisers of other architectures, and inputs as their pipelines feed them.

Inner widths are 256 (512 in the UNet's), so that int4 and int2 use their group size of 128 and
int4 its TinyGemm class; the names, the odd layers and the dtypes of inputs are those of the real
models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Random = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """One class of denoiser, small."""

    name: str
    cls: str
    """Class name in Diffusers."""
    config: dict
    build_inputs: Callable[[Random], dict]
    """Given a function of sizes that returns random numbers in the compute dtype."""

    def make(self, seed: int = 0) -> torch.nn.Module:
        """Return the model with random float32 weights, in eval mode."""
        import diffusers

        torch.manual_seed(seed)
        return getattr(diffusers, self.cls)(**self.config).eval()

    def inputs(self, dtype: torch.dtype, seed: int = 1) -> dict:
        """Return keyword arguments for forward."""
        generator = torch.Generator().manual_seed(seed)
        return self.build_inputs(lambda *size: torch.randn(size, generator=generator).to(dtype))

    def output(self, module: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        """Return what the model makes of the inputs."""
        with torch.no_grad():
            return module(**self.inputs(dtype), return_dict=False)[0]


def _flux(random):
    return {
        "hidden_states": random(1, 64, 16),
        "encoder_hidden_states": random(1, 16, 64),
        "pooled_projections": random(1, 64),
        "timestep": torch.tensor([0.5]).to(random(1).dtype),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(16, 3),
    }


def _sd3(random):
    return {
        "hidden_states": random(1, 16, 16, 16),
        "encoder_hidden_states": random(1, 8, 256),
        "pooled_projections": random(1, 64),
        "timestep": torch.tensor([500.0]),
    }


def _pixart(random):
    return {
        "hidden_states": random(1, 4, 16, 16),
        "encoder_hidden_states": random(1, 8, 64),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sana(random):
    return {
        "hidden_states": random(1, 16, 16, 16),
        "encoder_hidden_states": random(1, 8, 64),
        "timestep": torch.tensor([500]),
    }


def _auraflow(random):
    return {
        "hidden_states": random(1, 4, 16, 16),
        "encoder_hidden_states": random(1, 8, 64),
        "timestep": torch.tensor([0.5]).to(random(1).dtype),
    }


def _qwen_image(random):
    return {
        "hidden_states": random(1, 64, 64),
        "encoder_hidden_states": random(1, 8, 64),
        "encoder_hidden_states_mask": torch.ones(1, 8, dtype=torch.long),
        "timestep": torch.tensor([0.5]).to(random(1).dtype),
        "img_shapes": [[(1, 8, 8)]],
    }


def _wan(random):
    return {
        "hidden_states": random(1, 16, 2, 16, 16),
        "encoder_hidden_states": random(1, 8, 64),
        "timestep": torch.tensor([500]),
    }


def _ltx(random):
    return {
        "hidden_states": random(1, 32, 64),
        "encoder_hidden_states": random(1, 8, 64),
        "timestep": torch.tensor([500.0]),
        "encoder_attention_mask": torch.ones(1, 8, dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def _sdxl(random):
    return {
        "sample": random(1, 4, 16, 16),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": random(1, 8, 64),
        "added_cond_kwargs": {
            "text_embeds": random(1, 64),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]),
        },
    }


_HEADS = {"num_attention_heads": 4, "attention_head_dim": 64}

_ALL = (
    Architecture(
        "flux",
        "FluxTransformer2DModel",
        {
            **_HEADS,
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 64,
            "axes_dims_rope": [16, 24, 24],
            "guidance_embeds": True,
        },
        _flux,
    ),
    Architecture(
        "sd3",
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "joint_attention_dim": 256,
            "caption_projection_dim": 256,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 16,
        },
        _sd3,
    ),
    Architecture(
        "pixart",
        "PixArtTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 1,
            "cross_attention_dim": 256,
            "sample_size": 16,
            "caption_channels": 64,
        },
        _pixart,
    ),
    Architecture(
        "sana",
        "SanaTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 1,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 64,
            "cross_attention_dim": 256,
            "caption_channels": 64,
            "sample_size": 16,
        },
        _sana,
    ),
    Architecture(
        "auraflow",
        "AuraFlowTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 64,
            "caption_projection_dim": 256,
            "pos_embed_max_size": 64,
        },
        _auraflow,
    ),
    Architecture(
        "qwen-image",
        "QwenImageTransformer2DModel",
        {
            **_HEADS,
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 1,
            "joint_attention_dim": 64,
            "axes_dims_rope": (16, 24, 24),
        },
        _qwen_image,
    ),
    Architecture(
        "wan",
        "WanTransformer3DModel",
        {
            **_HEADS,
            "patch_size": (1, 2, 2),
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": 64,
            "freq_dim": 256,
            "ffn_dim": 512,
            "num_layers": 1,
            "rope_max_seq_len": 32,
        },
        _wan,
    ),
    Architecture(
        "ltx",
        "LTXVideoTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 64,
            "out_channels": 64,
            "cross_attention_dim": 256,
            "num_layers": 1,
            "caption_channels": 64,
        },
        _ltx,
    ),
    Architecture(
        "sdxl",
        "UNet2DConditionModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (32, 128),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": 1,
            "cross_attention_dim": 64,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 6 * 32 + 64,
        },
        _sdxl,
    ),
)

ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
"""By name: FLUX, SD3, PixArt, Sana, AuraFlow, Qwen-Image, Wan, LTX-Video and SDXL's UNet."""
