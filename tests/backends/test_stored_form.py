"""Shapes in files are written down once: what is quantized is what a waiting layer asks for."""

from __future__ import annotations

import pytest
import torch

import quantolab as ql
from quantolab.backends.quanto import stored_form
from quantolab.backends.quanto.layers import empty_linear, quantize_linear
from quantolab.shapes import Layer
from quantolab.weights import QUANTIZED

SHAPES = [(rows, columns) for rows in (1, 2, 3, 15, 16) for columns in (1, 16, 128, 129, 256)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("word", QUANTIZED)
def test_every_shape_comes_back_as_it_was(word, dtype):
    for rows, columns in SHAPES:
        layer = Layer("layer", columns, rows, bias=True)
        weight = torch.randn(rows, columns).to(dtype)
        made, cures = quantize_linear(layer, word, weight, torch.zeros(rows, dtype=dtype))
        piece = stored_form.piece_of(made, "", "layer")
        waiting = empty_linear(layer, word, dtype)
        assert stored_form.needed_specs(waiting, "") == {s.name: s for s in piece.specs}
        values = dict(zip([s.name for s in piece.specs], piece.values(), strict=True))
        names = stored_form.weight_names(waiting)
        parts = {name: values[name] for name in names}
        stored_form.fill_weight(waiting, parts, layer, frozenset(cures), own=True)
        assert torch.equal(stored_form.plain_weight(waiting), stored_form.plain_weight(made))
        assert type(waiting.weight) is type(made.weight)


@pytest.mark.parametrize("word", QUANTIZED)
def test_a_model_with_a_layer_of_one_output_is_saved_and_loaded(word, tmp_path):
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, out_channels=1, num_layers=1, num_single_layers=0,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    ).bfloat16()  # fmt: skip
    quantized, report = ql.quantize(model, word)
    assert "proj_out" in report.quantized
    again = ql.load_saved(ql.save(quantized, tmp_path / "saved"), device="cpu")
    ours, theirs = again.proj_out, quantized.proj_out
    assert torch.equal(stored_form.plain_weight(ours), stored_form.plain_weight(theirs))
