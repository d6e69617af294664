"""FLUX weights under the names that its makers publish: the way back from Diffusers' converter."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# Theirs: ours. Blocks are numbered alike; the tiny transformer has one of each kind.
_ONCE = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_JOINED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
_SINGLE_JOINED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}


def as_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a FLUX transformer's tensors by the names, and in the order, of its makers.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        By Diffusers' names; one double and one single block, and a guidance embedding.
    """
    double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
    plain = {
        **_ONCE,
        **_prefixed("double_blocks.0.", double, _DOUBLE),
        **_prefixed("single_blocks.0.", single, _SINGLE),
    }
    norms = {
        **_prefixed("double_blocks.0.", double, _DOUBLE_NORMS),
        **_prefixed("single_blocks.0.", single, _SINGLE_NORMS),
    }
    joined = {
        **{f"double_blocks.0.{k}": [double + n for n in v] for k, v in _DOUBLE_JOINED.items()},
        **{f"single_blocks.0.{k}": [single + n for n in v] for k, v in _SINGLE_JOINED.items()},
    }
    out = {f"{theirs}.scale": state[f"{ours}.weight"] for theirs, ours in norms.items()}
    for kind in ("weight", "bias"):
        out |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for theirs, ours in plain.items()}
        for theirs, names in joined.items():
            out[f"{theirs}.{kind}"] = torch.cat([state[f"{name}.{kind}"] for name in names])
        # Scale and shift lie in the other order.
        halves = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat(halves[::-1])
    return {name: tensor.clone().contiguous() for name, tensor in out.items()}


def _prefixed(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    return {theirs + there: ours + here for there, here in names.items()}
