"""Tensors under their makers' names: what other programs look for, in the order they want it.

Diffusers converts one way only, from these names to its own. The tables here are the way back, a
line a tensor, and each use of them is checked by that conversion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .converters import converter_for

# ORIGINAL = DIFFUSERS + DIFFUSERS ...: rows one after the other; ~: its two halves change places;
# {}: the number of a block; {last}: of the last; B: transformer_blocks.{}; .*: weight and bias.
# A line ends where its last name does. Lines of tensors that a model lacks are left.
_FLUX = """
time_in.in_layer.* = time_text_embed.timestep_embedder.linear_1.*
time_in.out_layer.* = time_text_embed.timestep_embedder.linear_2.*
vector_in.in_layer.* = time_text_embed.text_embedder.linear_1.*
vector_in.out_layer.* = time_text_embed.text_embedder.linear_2.*
guidance_in.in_layer.* = time_text_embed.guidance_embedder.linear_1.*
guidance_in.out_layer.* = time_text_embed.guidance_embedder.linear_2.*
txt_in.* = context_embedder.*
img_in.* = x_embedder.*
double_blocks.{}.img_mod.lin.* = transformer_blocks.{}.norm1.linear.*
double_blocks.{}.txt_mod.lin.* = transformer_blocks.{}.norm1_context.linear.*
double_blocks.{}.img_attn.qkv.* = B.attn.to_q.* + B.attn.to_k.* + B.attn.to_v.*
double_blocks.{}.txt_attn.qkv.* = B.attn.add_q_proj.* + B.attn.add_k_proj.* + B.attn.add_v_proj.*
double_blocks.{}.img_attn.norm.query_norm.scale = B.attn.norm_q.weight
double_blocks.{}.img_attn.norm.key_norm.scale = B.attn.norm_k.weight
double_blocks.{}.txt_attn.norm.query_norm.scale = B.attn.norm_added_q.weight
double_blocks.{}.txt_attn.norm.key_norm.scale = B.attn.norm_added_k.weight
double_blocks.{}.img_attn.proj.* = B.attn.to_out.0.*
double_blocks.{}.txt_attn.proj.* = B.attn.to_add_out.*
double_blocks.{}.img_mlp.0.* = B.ff.net.0.proj.*
double_blocks.{}.img_mlp.2.* = B.ff.net.2.*
double_blocks.{}.txt_mlp.0.* = B.ff_context.net.0.proj.*
double_blocks.{}.txt_mlp.2.* = B.ff_context.net.2.*
single_blocks.{}.modulation.lin.* = single_B.norm.linear.*
single_blocks.{}.linear1.* = single_B.attn.to_q.* + single_B.attn.to_k.* +
single_B.attn.to_v.* + single_B.proj_mlp.*
single_blocks.{}.norm.query_norm.scale = single_B.attn.norm_q.weight
single_blocks.{}.norm.key_norm.scale = single_B.attn.norm_k.weight
single_blocks.{}.linear2.* = single_B.proj_out.*
final_layer.linear.* = proj_out.*
final_layer.adaLN_modulation.1.* = ~norm_out.linear.*
"""

_SD3 = """
pos_embed = pos_embed.pos_embed
x_embedder.proj.* = pos_embed.proj.*
t_embedder.mlp.0.* = time_text_embed.timestep_embedder.linear_1.*
t_embedder.mlp.2.* = time_text_embed.timestep_embedder.linear_2.*
y_embedder.mlp.0.* = time_text_embed.text_embedder.linear_1.*
y_embedder.mlp.2.* = time_text_embed.text_embedder.linear_2.*
context_embedder.* = context_embedder.*
joint_blocks.{}.x_block.attn.qkv.* = B.attn.to_q.* + B.attn.to_k.* + B.attn.to_v.*
joint_blocks.{}.context_block.attn.qkv.* = B.attn.add_q_proj.* +
B.attn.add_k_proj.* + B.attn.add_v_proj.*
joint_blocks.{}.x_block.attn.ln_q.weight = B.attn.norm_q.weight
joint_blocks.{}.x_block.attn.ln_k.weight = B.attn.norm_k.weight
joint_blocks.{}.context_block.attn.ln_q.weight = B.attn.norm_added_q.weight
joint_blocks.{}.context_block.attn.ln_k.weight = B.attn.norm_added_k.weight
joint_blocks.{}.x_block.attn.proj.* = B.attn.to_out.0.*
joint_blocks.{}.context_block.attn.proj.* = B.attn.to_add_out.*
joint_blocks.{}.x_block.attn2.qkv.* = B.attn2.to_q.* + B.attn2.to_k.* + B.attn2.to_v.*
joint_blocks.{}.x_block.attn2.ln_q.weight = B.attn2.norm_q.weight
joint_blocks.{}.x_block.attn2.ln_k.weight = B.attn2.norm_k.weight
joint_blocks.{}.x_block.attn2.proj.* = B.attn2.to_out.0.*
joint_blocks.{}.x_block.adaLN_modulation.1.* = B.norm1.linear.*
joint_blocks.{last}.context_block.adaLN_modulation.1.* =
~transformer_blocks.{last}.norm1_context.linear.*
joint_blocks.{}.context_block.adaLN_modulation.1.* = B.norm1_context.linear.*
joint_blocks.{}.x_block.mlp.fc1.* = B.ff.net.0.proj.*
joint_blocks.{}.x_block.mlp.fc2.* = B.ff.net.2.*
joint_blocks.{}.context_block.mlp.fc1.* = B.ff_context.net.0.proj.*
joint_blocks.{}.context_block.mlp.fc2.* = B.ff_context.net.2.*
final_layer.linear.* = proj_out.*
final_layer.adaLN_modulation.1.* = ~norm_out.linear.*
"""

_AURAFLOW = """
register_tokens = register_tokens
positional_encoding = pos_embed.pos_embed
init_x_linear.* = pos_embed.proj.*
t_embedder.mlp.0.* = time_step_proj.linear_1.*
t_embedder.mlp.2.* = time_step_proj.linear_2.*
cond_seq_linear.weight = context_embedder.weight
double_layers.{}.mlpX.c_fc1.weight = joint_B.ff.linear_1.weight
double_layers.{}.mlpX.c_fc2.weight = joint_B.ff.linear_2.weight
double_layers.{}.mlpX.c_proj.weight = joint_B.ff.out_projection.weight
double_layers.{}.mlpC.c_fc1.weight = joint_B.ff_context.linear_1.weight
double_layers.{}.mlpC.c_fc2.weight = joint_B.ff_context.linear_2.weight
double_layers.{}.mlpC.c_proj.weight = joint_B.ff_context.out_projection.weight
double_layers.{}.modX.1.weight = joint_B.norm1.linear.weight
double_layers.{}.modC.1.weight = joint_B.norm1_context.linear.weight
double_layers.{}.attn.w2q.weight = joint_B.attn.to_q.weight
double_layers.{}.attn.w2k.weight = joint_B.attn.to_k.weight
double_layers.{}.attn.w2v.weight = joint_B.attn.to_v.weight
double_layers.{}.attn.w2o.weight = joint_B.attn.to_out.0.weight
double_layers.{}.attn.w1q.weight = joint_B.attn.add_q_proj.weight
double_layers.{}.attn.w1k.weight = joint_B.attn.add_k_proj.weight
double_layers.{}.attn.w1v.weight = joint_B.attn.add_v_proj.weight
double_layers.{}.attn.w1o.weight = joint_B.attn.to_add_out.weight
single_layers.{}.mlp.c_fc1.weight = single_B.ff.linear_1.weight
single_layers.{}.mlp.c_fc2.weight = single_B.ff.linear_2.weight
single_layers.{}.mlp.c_proj.weight = single_B.ff.out_projection.weight
single_layers.{}.modCX.1.weight = single_B.norm1.linear.weight
single_layers.{}.attn.w1q.weight = single_B.attn.to_q.weight
single_layers.{}.attn.w1k.weight = single_B.attn.to_k.weight
single_layers.{}.attn.w1v.weight = single_B.attn.to_v.weight
single_layers.{}.attn.w1o.weight = single_B.attn.to_out.0.weight
final_linear.weight = proj_out.weight
modF.1.weight = ~norm_out.linear.weight
"""

_WAN = """
patch_embedding.* = patch_embedding.*
time_embedding.0.* = condition_embedder.time_embedder.linear_1.*
time_embedding.2.* = condition_embedder.time_embedder.linear_2.*
text_embedding.0.* = condition_embedder.text_embedder.linear_1.*
text_embedding.2.* = condition_embedder.text_embedder.linear_2.*
time_projection.1.* = condition_embedder.time_proj.*
img_emb.proj.0.* = condition_embedder.image_embedder.norm1.*
img_emb.proj.1.* = condition_embedder.image_embedder.ff.net.0.proj.*
img_emb.proj.3.* = condition_embedder.image_embedder.ff.net.2.*
img_emb.proj.4.* = condition_embedder.image_embedder.norm2.*
blocks.{}.modulation = blocks.{}.scale_shift_table
blocks.{}.self_attn.q.* = blocks.{}.attn1.to_q.*
blocks.{}.self_attn.k.* = blocks.{}.attn1.to_k.*
blocks.{}.self_attn.v.* = blocks.{}.attn1.to_v.*
blocks.{}.self_attn.o.* = blocks.{}.attn1.to_out.0.*
blocks.{}.self_attn.norm_q.weight = blocks.{}.attn1.norm_q.weight
blocks.{}.self_attn.norm_k.weight = blocks.{}.attn1.norm_k.weight
blocks.{}.cross_attn.q.* = blocks.{}.attn2.to_q.*
blocks.{}.cross_attn.k.* = blocks.{}.attn2.to_k.*
blocks.{}.cross_attn.v.* = blocks.{}.attn2.to_v.*
blocks.{}.cross_attn.o.* = blocks.{}.attn2.to_out.0.*
blocks.{}.cross_attn.k_img.* = blocks.{}.attn2.add_k_proj.*
blocks.{}.cross_attn.v_img.* = blocks.{}.attn2.add_v_proj.*
blocks.{}.cross_attn.norm_q.weight = blocks.{}.attn2.norm_q.weight
blocks.{}.cross_attn.norm_k.weight = blocks.{}.attn2.norm_k.weight
blocks.{}.cross_attn.norm_k_img.weight = blocks.{}.attn2.norm_added_k.weight
blocks.{}.norm3.* = blocks.{}.norm2.*
blocks.{}.ffn.0.* = blocks.{}.ffn.net.0.proj.*
blocks.{}.ffn.2.* = blocks.{}.ffn.net.2.*
head.modulation = scale_shift_table
head.head.* = proj_out.*
"""

_LTX = """
patchify_proj.* = proj_in.*
adaln_single.emb.timestep_embedder.linear_1.* = time_embed.emb.timestep_embedder.linear_1.*
adaln_single.emb.timestep_embedder.linear_2.* = time_embed.emb.timestep_embedder.linear_2.*
adaln_single.linear.* = time_embed.linear.*
transformer_blocks.{}.attn1.q_norm.weight = B.attn1.norm_q.weight
transformer_blocks.{}.attn1.k_norm.weight = B.attn1.norm_k.weight
transformer_blocks.{}.attn2.q_norm.weight = B.attn2.norm_q.weight
transformer_blocks.{}.attn2.k_norm.weight = B.attn2.norm_k.weight
"""

_THE_SAME = ("LTXVideoTransformer3DModel", "QwenImageTransformer2DModel")
"""Classes whose other tensors have the same name in both."""

_TABLES = {
    "FluxTransformer2DModel": ("flux", _FLUX),
    "SD3Transformer2DModel": ("sd3", _SD3),
    "AuraFlowTransformer2DModel": ("aura", _AURAFLOW),
    "WanTransformer3DModel": ("wan", _WAN),
    "LTXVideoTransformer3DModel": ("ltxv", _LTX),
    "QwenImageTransformer2DModel": ("qwen_image", ""),
}
"""What ComfyUI and stable-diffusion.cpp call a class's architecture in files, and its names."""


@dataclass(frozen=True)
class Part:
    """A tensor of Diffusers', or what becomes of it in an original one."""

    name: str
    swapped: bool = False
    """Whether its two halves change places."""


def architecture(cls: str) -> str:
    """Return what other programs call a class's architecture; its own name if they have none."""
    return _TABLES[cls][0] if cls in _TABLES else cls


def original_names(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    own_width: bool = False,
) -> dict[str, tuple[Part, ...]] | None:
    """Return a model's tensors under their makers' names, each as parts one after the other.

    Parameters
    ----------
    module : torch.nn.Module
        A model of Diffusers.
    shapes : mapping
        Of its tensors, by Diffusers' names.
    own_width : bool
        Whether names count that only a converter told this model's width reads; plain Diffusers'
        own converter of FLUX assumes 3072.

    Returns
    -------
    dict or None
        None where there is no table for the class, or Diffusers' conversion doesn't give back,
        from these names, exactly what there was.
    """
    cls = type(module).__name__
    converter = converter_for(type(module), module.config, own_width=own_width)
    if converter is None or cls not in _TABLES:
        return None
    found = _renamed(_TABLES[cls][1], shapes)
    used = {part.name for parts in found.values() for part in parts}
    left = [name for name in shapes if name not in used]
    if left and cls not in _THE_SAME:
        return None
    found |= {name: (Part(name),) for name in left}
    return found if _reads_back(converter, dict(module.config), found, shapes) else None


def _renamed(table: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Part, ...]]:
    blocks = {int(number) for name in shapes for number in re.findall(r"\.(\d+)\.", name)}
    own = (re.match(r"transformer_blocks\.(\d+)", name) for name in shapes)
    last = max((int(found[1]) for found in own if found), default=0)
    found: dict[str, tuple[Part, ...]] = {}
    taken: set[str] = set()
    table = table.replace("+\n", "+ ").replace("=\n", "= ")
    for line in table.replace("B.", "transformer_blocks.{}.").split("\n"):
        if not line:
            continue
        line = line.replace("{last}", str(last))
        for leaf in (".weight", ".bias") if ".*" in line else ("",):
            for number in sorted(blocks) if "{}" in line else (0,):
                said = line.replace(".*", leaf).replace("{}", str(number))
                original, _, rest = said.partition(" = ")
                parts = tuple(
                    Part(name.removeprefix("~"), name.startswith("~")) for name in rest.split(" + ")
                )
                names = {part.name for part in parts}
                if names <= shapes.keys() and not names & taken:
                    found[original] = parts
                    taken |= names
    return found


def _reads_back(
    converter: Any,
    config: dict[str, Any],
    found: Mapping[str, tuple[Part, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> bool:
    """Return whether Diffusers makes of the original names what there was, row by row.

    Rows are numbered throughout and sent through the conversion, in place of any weights.
    """
    numbers: dict[str, torch.Tensor] = {}
    count = 0
    for name, shape in shapes.items():
        rows = shape[0] if shape else 1
        numbers[name] = torch.arange(count, count + rows).reshape(rows, *[1] * (len(shape) - 1))
        count += rows
    checkpoint = {name: joined(parts, numbers) for name, parts in found.items()}
    try:
        back = converter(checkpoint=checkpoint, config=config)
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError, AttributeError):
        return False
    back = {name: value for name, value in back.items() if value is not None}
    return back.keys() == numbers.keys() and all(
        torch.equal(value.reshape(-1), numbers[name].reshape(-1)) for name, value in back.items()
    )


def joined(parts: tuple[Part, ...], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return parts as the one tensor that they become, rows one after the other."""
    rows: list[torch.Tensor] = []
    for part in parts:
        value = tensors[part.name]
        rows += value.chunk(2)[::-1] if part.swapped else (value,)
    return torch.cat(rows) if len(rows) > 1 else rows[0]
