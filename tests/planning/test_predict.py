"""Bytes from shapes alone: worked out by hand, and of the real FLUX.1-dev to the byte."""

import pytest
import torch
from torch import nn
from uniform import predicted_bytes

from quantolab.backends import layer_bytes
from quantolab.backends.quanto.bytes import group_size
from quantolab.models.layers import linear_layers
from quantolab.models.skeleton import build_skeleton
from quantolab.models.source import find_model
from quantolab.shapes import Layer


@pytest.fixture(scope="module")
def flux(flux_dev):
    return build_skeleton(find_model(flux_dev).component())


@pytest.mark.parametrize(
    ("weights", "total"),
    [
        ("none", 23_802_816_640),
        ("float8", 11_910_627_552),
        ("int8", 11_910_627_552),
        ("int4", 6_327_162_976),
        ("int2", 3_352_582_240),
    ],
)
def test_flux_dev_in_half_precision(flux, weights, total):
    assert predicted_bytes(flux, weights, "bfloat16") == total
    assert predicted_bytes(flux, weights, "float16") == total


def test_flux_dev_in_float32(flux):
    assert predicted_bytes(flux, "none", "float32") == 47_605_633_280
    assert predicted_bytes(flux, "int8", "float32") == 11_922_932_160
    assert predicted_bytes(flux, "int4", "float32") == 6_705_164_480


def test_flux_dev_is_what_was_published(flux):
    config = flux.config
    assert (config.num_layers, config.num_single_layers) == (19, 38)
    assert sum(p.numel() for p in flux.parameters()) == 11_901_408_320
    assert len(linear_layers(flux)) == 504
    assert all(p.device.type == "meta" for p in flux.parameters())


def test_kept_layers_cost_what_they_cost_unquantized(flux):
    kept = {layer.path for layer in linear_layers(flux) if layer.leaf == "proj_out"}
    more = predicted_bytes(flux, "int8", "bfloat16", kept) - 11_910_627_552
    assert len(kept) == 39
    assert round(more / 2**30, 2) == 1.67


@pytest.mark.parametrize(
    ("in_features", "size"),
    [
        (1, None), (128, None), (130, None), (160, 32), (192, 96), (200, None), (224, 32),
        (255, None), (256, 128), (288, 96), (320, 64), (1152, 128), (3072, 128),
    ],
)  # fmt: skip
def test_group_size(in_features, size):
    assert group_size(in_features) == size


@pytest.mark.parametrize(
    ("weights", "dtype", "size"),
    [
        ("none", "bfloat16", 2 * 256 * 10),
        ("none", "float32", 4 * 256 * 10),
        ("int8", "bfloat16", 256 * 10 + 2 * 10 + 4),  # data, a scale a row, two scalars
        ("float8", "float32", 256 * 10 + 4 * 10 + 8),
        ("int4", "bfloat16", 256 * 10 // 2 + 2 * 20 * 2 + 4),  # scale and shift of 20 groups
        ("int2", "float16", 256 * 10 // 4 + 2 * 20 * 2 + 4),
    ],
)
def test_bytes_of_a_layer_by_hand(weights, dtype, size):
    assert layer_bytes(Layer("x", 256, 10, True), weights, dtype) == size


def test_odd_rows_are_padded():
    # 7 rows of 5 in half bytes: 4 bytes hold 7 rows, of each column
    assert layer_bytes(Layer("x", 5, 7, False), "int4", "bfloat16") == 4 * 5 + 2 * 7 * 2 + 4


class Mixed(nn.Module):
    _keep_in_fp32_modules = ("time",)

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 4))
        self.proj = nn.Linear(8, 2)
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("loose", torch.zeros(5, dtype=torch.float64), persistent=False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def test_buffers_and_what_stays_in_float32():
    rest = 4 * (16 + 4) + 2 * 3 + 8 * 5 + 8 * 2  # time, kept, loose (as it is), count
    with torch.device("meta"):
        module = Mixed()
    assert predicted_bytes(module, "none", "bfloat16") == rest + 2 * (16 + 2)
    # A layer that stays in float32 isn't quantized, whether `kept` names it or not.
    int8 = rest + (16 + 2 * 2 + 4) + 2 * 2
    assert predicted_bytes(module, "int8", "bfloat16") == int8
    assert predicted_bytes(module, "int8", "bfloat16", {"time.0"}) == int8
    assert predicted_bytes(module, "int8", "bfloat16", {"proj"}) == rest + 2 * (16 + 2)


def test_tied_parameters_count_once():
    module = nn.Module()
    module.a, module.b = nn.Embedding(6, 4), nn.Embedding(6, 4)
    module.b.weight = module.a.weight
    assert predicted_bytes(module, "none", "bfloat16") == 2 * 24
