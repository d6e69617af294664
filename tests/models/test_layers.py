"""Patterns hit what their writer means, and a dead one says what was meant."""

import pytest
import torch
from torch import nn

from quantolab.errors import ArgumentError
from quantolab.models.layers import check_patterns, kept_in_float32, linear_layers, match_layers
from quantolab.shapes import Layer

PATHS = (
    "x_embedder",
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.0.ff.net.2",
    "transformer_blocks.1.attn.to_q",
    "transformer_blocks.10.attn.to_q",
    "single_transformer_blocks.0.attn.to_q",
    "single_transformer_blocks.0.proj_out",
    "norm_out.linear",
    "proj_out",
)
LAYERS = tuple(Layer(path, 8, 4, True) for path in PATHS)


def hit(*patterns, component=""):
    return list(match_layers(patterns, LAYERS, component))


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        # a leaf name, as Diffusers compares it
        ("proj_out", ["single_transformer_blocks.0.proj_out", "proj_out"]),
        ("0", ["transformer_blocks.0.attn.to_out.0"]),
        ("2", ["transformer_blocks.0.ff.net.2"]),
        # a full path
        ("norm_out.linear", ["norm_out.linear"]),
        ("transformer_blocks.1.attn.to_q", ["transformer_blocks.1.attn.to_q"]),
        # a container, whole names only: 1 isn't 10
        ("transformer_blocks.1", ["transformer_blocks.1.attn.to_q"]),
        ("norm_out", ["norm_out.linear"]),
        ("transformer_blocks.0.attn", [PATHS[1], PATHS[2]]),
        # globs over layers
        ("*proj_out", ["single_transformer_blocks.0.proj_out", "proj_out"]),
        ("transformer_blocks.*.to_q", [PATHS[1], PATHS[4], PATHS[5]]),
        ("transformer_blocks.?.attn.to_q", [PATHS[1], PATHS[4]]),
        ("transformer_blocks.[01].attn.to_q", [PATHS[1], PATHS[4]]),
        # globs over containers
        ("*.attn", [PATHS[1], PATHS[2], PATHS[4], PATHS[5], PATHS[6]]),
        ("single_*", ["single_transformer_blocks.0.attn.to_q", PATHS[7]]),
        ("*", list(PATHS)),
        # nothing
        ("attn", []),
        ("PROJ_OUT", []),
        ("transformer_blocks.", []),
        ("proj", []),
    ],
)
def test_a_pattern_hits(pattern, paths):
    assert hit(pattern) == paths


def test_a_component_may_stand_before():
    assert hit("transformer.proj_out", component="transformer") == hit("proj_out")
    assert hit("transformer.norm_out", component="transformer") == ["norm_out.linear"]
    assert hit("transformer.norm_out", component="text_encoder") == []
    assert hit("transformer.norm_out") == []


def test_the_first_pattern_is_named():
    hits = match_layers(("norm_out", "*linear", "proj_out"), LAYERS)
    assert hits == {
        "norm_out.linear": "norm_out",
        "single_transformer_blocks.0.proj_out": "proj_out",
        "proj_out": "proj_out",
    }


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("proj_ot", "; did you mean 'proj_out'"),
        ("X_Embedder", "; did you mean 'x_embedder'?"),
        ("attn", "; did you mean '*.attn'?"),
        ("norm_out.liner", "; did you mean 'norm_out.linear'"),
        ("transformer_block.0", "; did you mean 'transformer_blocks.0"),
        ("qqqqqqqqqqqqqqqq", ""),
    ],
)
def test_a_dead_pattern_suggests(pattern, hint):
    with pytest.raises(ArgumentError) as caught:
        check_patterns(("proj_out", pattern), {"transformer": LAYERS})
    start = (
        f"skip pattern {pattern!r} matches none of the 10 Linear layers of transformer; allowed: a "
        "leaf name, a full path, a container's path or a glob"
    )
    assert str(caught.value).startswith(start + hint)
    if not hint:
        assert str(caught.value) == start


def test_a_pattern_is_alive_if_any_component_has_it():
    encoder = (Layer("encoder.wo", 4, 4, False),)
    parts = {"transformer": LAYERS, "text_encoder_2": encoder}
    check_patterns(("wo", "proj_out", "text_encoder_2.encoder", "transformer.proj_out"), parts)
    with pytest.raises(
        ArgumentError, match="none of the 11 Linear layers of transformer and text_encoder_2"
    ):
        check_patterns(("text_encoder_2.proj_out",), parts)


def test_layers_of_a_module_are_its_linear_ones():
    class Own(nn.Linear):
        pass

    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(1, 1, 1), Own(4, 5, bias=False))
    assert linear_layers(module) == (Layer("0", 3, 2, True), Layer("2", 4, 5, False))
    assert linear_layers(module)[1].parameters == 20
    assert Layer("a.b.c", 1, 1, True).leaf == "c"


def test_what_stays_in_float32_is_any_part_of_a_path():
    module = nn.Module()
    assert not kept_in_float32(module, "time_embedder.linear")
    module._keep_in_fp32_modules = ["time_embedder", "wo"]
    assert kept_in_float32(module, "condition.time_embedder.linear_1.weight")
    assert kept_in_float32(module, "block.wo")
    assert not kept_in_float32(module, "block.world")
    module._keep_in_fp32_modules = None
    assert not kept_in_float32(module, "block.wo")
