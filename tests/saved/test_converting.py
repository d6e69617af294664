"""Quanto's own checkpoints become Diffusers' form and back, bit for bit."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from saved_models import QUANTIZED, assert_same_weights, output_of

import quantolab as ql
from quantolab.errors import BrokenModelError, UnsupportedError
from quantolab.saved.converting import from_quanto, to_quanto
from quantolab.saved.doors import load_saved, save


@pytest.fixture(scope="module")
def quanto_flux():
    from optimum.quanto import QuantizedDiffusersModel

    class QuantizedFlux(QuantizedDiffusersModel):
        base_class = FluxTransformer2DModel

    return QuantizedFlux


def quanto_folder(quanto_flux, flux_folder, folder, weights, **kwargs):
    plain = FluxTransformer2DModel.from_pretrained(flux_folder, torch_dtype=torch.bfloat16).eval()
    linear = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    made = quanto_flux.quantize(plain, weights=weights, include=linear, **kwargs)
    made.save_pretrained(folder)
    return made._wrapped


@pytest.mark.parametrize("weights", QUANTIZED)
def test_quantos_own_checkpoint_there_and_back(quanto_flux, flux_folder, tmp_path, weights):
    theirs = quanto_folder(quanto_flux, flux_folder, tmp_path / "quanto", "q" + weights)
    assert_same_weights(load_saved(tmp_path / "quanto", device="cpu"), theirs)
    ours = load_saved(from_quanto(tmp_path / "quanto", tmp_path / "ours"), device="cpu")
    assert_same_weights(ours, theirs)
    plain = FluxTransformer2DModel.from_pretrained(tmp_path / "ours", torch_dtype=torch.bfloat16)
    assert_same_weights(plain, theirs)
    to_quanto(tmp_path / "ours", tmp_path / "back")
    before, after = (
        json.loads((tmp_path / n / "quanto_qmap.json").read_text()) for n in ("quanto", "back")
    )
    assert before == after
    again = quanto_flux.from_pretrained(tmp_path / "back")._wrapped
    # Quanto reads everything but the quantized weights into float32.
    assert_same_weights(again, theirs, only=".weight._")


def test_skips_by_path_are_for_quanto_and_load_saved_only(quanto_flux, flux_folder, tmp_path):
    theirs = quanto_folder(
        quanto_flux, flux_folder, tmp_path / "quanto", "qint8", exclude=["proj_out"]
    )
    with pytest.raises(UnsupportedError, match=r"leaf name only, and 'proj_out' is kept"):
        from_quanto(tmp_path / "quanto", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    from_quanto(tmp_path / "quanto", tmp_path / "ours", require_diffusers=False)
    with pytest.raises(ValueError, match="Unknown quantization type"):
        FluxTransformer2DModel.from_pretrained(tmp_path / "ours")
    ours = load_saved(tmp_path / "ours", device="cpu")
    assert_same_weights(ours, theirs)
    assert torch.equal(output_of(ours), output_of(theirs))


def test_what_quantolab_saves_is_quantos(quanto_flux, flux_folder, tmp_path):
    module = ql.load(flux_folder, ql.Recipe("int4", skip="proj_out"), device="cpu")
    to_quanto(save(module, tmp_path / "ours", max_shard_size="300KB"), tmp_path / "quanto")
    again = quanto_flux.from_pretrained(tmp_path / "quanto")._wrapped
    assert_same_weights(again, module, only=".weight._")


def test_maps_that_can_not_be_converted_say_why(quanto_flux, flux_folder, tmp_path):
    quanto_folder(quanto_flux, flux_folder, tmp_path / "quanto", "qint8")
    path = tmp_path / "quanto" / "quanto_qmap.json"
    qmap = json.loads(path.read_text())
    first = next(iter(qmap))
    for changed, kind, message in (
        ({"weights": "qint8", "activations": "qint8"}, UnsupportedError, "quantizes activations"),
        ({"weights": "qint3", "activations": "none"}, UnsupportedError, "has weights 'qint3'"),
        ({"weights": "qint4", "activations": "none"}, BrokenModelError, "is int4"),
        ("qint8", BrokenModelError, "doesn't give weights and activations"),
    ):
        path.write_text(json.dumps({**qmap, first: changed}))
        with pytest.raises(kind, match=message):
            from_quanto(tmp_path / "quanto", tmp_path / "ours")
    path.write_text(json.dumps({k: v for k, v in qmap.items() if k != first}))
    with pytest.raises(BrokenModelError, match="is not quantized, in the weights it is int8"):
        from_quanto(tmp_path / "quanto", tmp_path / "ours")


def test_an_unquantized_model_has_no_map(flux_folder, tmp_path):
    folder = save(ql.load(flux_folder, "none", device="cpu"), tmp_path / "plain")
    with pytest.raises(UnsupportedError, match="isn't quantized"):
        to_quanto(folder, tmp_path / "quanto")


def test_quantized_convolutions_are_loaded_but_not_converted(tmp_path):
    """Quanto's own PixArt class quantizes the patch embedding, a convolution."""
    from diffusers import PixArtTransformer2DModel
    from optimum.quanto import QuantizedPixArtTransformer2DModel

    plain = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=256, sample_size=8, caption_channels=32,
    ).to(torch.bfloat16)  # fmt: skip
    theirs = QuantizedPixArtTransformer2DModel.quantize(plain.eval(), weights="qint8")
    theirs.save_pretrained(tmp_path / "quanto")
    assert_same_weights(load_saved(tmp_path / "quanto", device="cpu"), theirs._wrapped)
    # Quanto's folder doesn't say in which dtype the positions were held; ours does.
    ours = load_saved(save(theirs._wrapped, tmp_path / "saved"), device="cpu")
    assert torch.equal(output_of(ours), output_of(theirs._wrapped))
    with pytest.raises(UnsupportedError, match=r"Linear layers only, and 'pos_embed\.proj'"):
        from_quanto(tmp_path / "quanto", tmp_path / "ours")
