"""What a comparison takes of a card: FLUX.1-dev's figures, and that fake tensors tell the truth."""

import pytest
import torch

from quantolab.errors import ArgumentError
from quantolab.planning.activations import live_bytes
from quantolab.planning.plan import PIPELINE, plan


@pytest.fixture(scope="module")
def flux():
    table = plan("black-forest-labs/FLUX.1-dev", ["int8", "int4"], vram="12GB")
    return table[table.component == PIPELINE].set_index("recipe")


@pytest.mark.parametrize(("recipe", "gigabytes"), [("none", 26.0), ("int8", 14.1), ("int4", 8.5)])
def test_flux_dev_makes_a_picture_with(flux, recipe, gigabytes):
    assert flux.resident_bytes[recipe] == pytest.approx(gigabytes * 1e9, rel=0.05)
    assert flux["size"][recipe] == "1024x1024"


def test_flux_dev_encodes_with(flux):
    assert set(flux.encode_bytes) == {flux.encode_bytes["none"]}
    assert flux.encode_bytes["none"] == pytest.approx(10.3e9, rel=0.05)
    assert flux.compare_bytes["int4"] == flux.encode_bytes["int4"]  # the larger of the two
    assert flux.compare_bytes["int8"] == flux.resident_bytes["int8"]


def test_a_card_of_12_gb_has_12_gib(flux):
    assert list(flux.compare_fits) == [False, False, True]
    table = plan("FLUX.1-dev", ["int4"], vram=8_610_000_000)
    assert table.attrs["vram"] == 8_610_000_000  # a number means itself
    assert plan("FLUX.1-dev", ["int4"], vram="12 GB").attrs["vram"] == 12 << 30
    assert plan("FLUX.1-dev", ["int4"], vram="12GiB").attrs["vram"] == 12 << 30


def test_milder_ways_take_less(flux):
    ways = [
        "resident_bytes", "tiled_bytes", "model_offload_bytes", "group_offload_bytes",
        "sequential_offload_bytes",
    ]  # fmt: skip
    for recipe in flux.index:
        figures = [flux[way][recipe] for way in ways]
        assert figures == sorted(figures, reverse=True)
        assert figures[0] > figures[-1]


def test_smaller_pictures_take_less():
    small = plan("FLUX.1-dev", ["int4"], size=(512, 512)).query("component == 'pipeline'")
    large = plan("FLUX.1-dev", ["int4"], size=(1024, 1024)).query("component == 'pipeline'")
    assert (small.resident_bytes.to_numpy() < large.resident_bytes.to_numpy()).all()
    with pytest.raises(ArgumentError, match="did you mean 512x512"):
        plan("FLUX.1-dev", size=(513, 513))


@pytest.mark.parametrize(
    "model",
    [
        "Wan2.1-14B", "SDXL",
        *(pytest.param(name, marks=pytest.mark.sweep)
          for name in ("SD3.5-large", "Qwen-Image", "PixArt-Sigma", "Sana-1.6B")),
    ],
)  # fmt: skip
def test_pictures_of_other_models_are_counted(model):
    frames = 9 if model.startswith("Wan") else None  # the more, the longer its VAE takes
    table = plan(model, ["int8"], size=(1024, 1024), frames=frames)
    table = table.query("component == 'pipeline'")
    assert table.resident_bytes.notna().all()
    assert (table.resident_bytes > table.weight_bytes - table.encode_bytes.fillna(1e12)).all()


def test_fake_tensors_tell_what_real_ones_take(flux_folder):
    """Live bytes of a forward without values are those of the same forward with values."""
    from diffusers import FluxTransformer2DModel

    from quantolab.models.sample_inputs import sample_inputs
    from quantolab.planning import activations

    module = FluxTransformer2DModel.from_pretrained(flux_folder).eval()
    inputs = sample_inputs(module, torch.float32, side=32, tokens=64)
    live = activations._Live()
    with torch.no_grad(), live:
        module(**inputs)
    before = {name: (p.shape, p.dtype) for name, p in module.named_parameters()}
    empty = FluxTransformer2DModel.from_config(module.config).to("meta")
    said = live_bytes(empty, lambda fake, given: fake(**given), inputs, "float32")
    assert said == pytest.approx(live.peak, rel=0.02)
    assert {n: (p.shape, p.dtype) for n, p in empty.named_parameters()} == before
    assert all(p.is_meta for p in empty.parameters())  # as it was


def test_what_needs_values_is_unknown_and_left_whole():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4, device="meta")})

    def call(fake, given):
        return fake["a"](given["x"]).sum().item() > 0

    assert live_bytes(module, call, {"x": torch.ones(1, 4)}, "float32") is None
    assert module["a"].weight.is_meta
