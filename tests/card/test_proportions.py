"""FLUX.1-dev's proportions on cards of 24 to 8 GB, all widths divided by 16, so bytes by 256.

As many blocks and layers as it has, an allocator that rounds to as much less, and a picture with as
much less activation: what fits, what is offloaded and how full the card gets is as at full size.
"""

from __future__ import annotations

import json
import shutil

import pytest

from quantolab.planning.needs import CONTEXT_BYTES
from quantolab.planning.plan import PIPELINE, plan
from quantolab.report.tables import read_table

NARROWER = 16
SCALE = NARROWER**2
WAYS = {
    "none": "resident_bytes", "model": "model_offload_bytes",
    "group": "group_offload_bytes", "sequential": "sequential_offload_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def narrow_flux(tmp_path_factory):
    """FLUX.1-dev, 16 times as narrow, of random weights: 94 MB, with a T5 of 37 MB."""
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    from quantolab.demo.knowing import demo_model

    folder = tmp_path_factory.mktemp("narrow") / "flux"
    shutil.copytree(demo_model(), folder)
    pooled = json.loads((folder / "transformer" / "config.json").read_text())
    torch.manual_seed(0)
    parts = {
        "transformer": FluxTransformer2DModel(
            num_layers=19, num_single_layers=38, attention_head_dim=64, num_attention_heads=3,
            joint_attention_dim=256, in_channels=64, guidance_embeds=True,
            pooled_projection_dim=pooled["pooled_projection_dim"], axes_dims_rope=(8, 28, 28),
        ),
        "text_encoder_2": T5EncoderModel(
            T5Config(
                d_model=256, d_ff=640, num_layers=24, num_heads=4, d_kv=64, vocab_size=2008,
                feed_forward_proj="gated-gelu", dropout_rate=0,
            )
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=16,
            norm_num_groups=4, shift_factor=0.1, scaling_factor=0.36, use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }  # fmt: skip
    for name, module in parts.items():
        shutil.rmtree(folder / name)
        module.to(torch.bfloat16).save_pretrained(folder / name)
    return folder


def compared(test_card, model, out, gigabytes, *words, size="256x256"):
    """Compare on a card of so many gigabytes, a 256th of them; return its bytes, output, table."""
    bytes_there = ((gigabytes << 30) - CONTEXT_BYTES) // SCALE + CONTEXT_BYTES
    card = test_card(bytes_there, context=CONTEXT_BYTES, block=512 // SCALE)
    done = card.command(
        "compare", str(model), *words, "--device", "cuda", "--size", size, "--steps", "1",
        "--repeats", "1", "--prompt", "a red ring", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return card, bytes_there, done.stdout, read_table(out / "results.csv")


def assert_as_predicted(model, table, size="256x256", *, encodes=False):
    """A plan's bytes, arithmetic alone, are within 5 % of what the card counted.

    Of trials that encode their prompts themselves, the larger of both needs.
    """
    asked = tuple(map(int, size.split("x")))
    planned = plan(model, list(table.recipe), size=asked)
    planned = planned[planned.component == PIPELINE].set_index("recipe")
    for row in table.itertuples():
        counted = max(row.load_peak_bytes, row.peak_bytes) + CONTEXT_BYTES / SCALE
        needs = planned.loc[row.recipe, [WAYS[row.offload], *["encode_bytes"] * encodes]].max()
        said = needs - CONTEXT_BYTES + CONTEXT_BYTES / SCALE
        assert said == pytest.approx(counted, rel=0.05), (row.recipe, row.offload)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("gigabytes", "offloaded"),
    [(24, {"none"}), (16, {"none"}), (12, {"none", "int8"}), (8, {"none", "int8", "int4"})],
)
def test_every_recipe_has_its_quality(test_card, narrow_flux, tmp_path, gigabytes, offloaded):
    _, there, said, table = compared(
        test_card, narrow_flux, tmp_path / "run", gigabytes, "--weights", "none,int8,int4"
    )
    assert list(table.status) == ["ok"] * 3
    assert set(table.recipe[table.offload != "none"]) == offloaded
    for recipe, way in zip(table.recipe, table.offload, strict=True):
        assert way == "none" or f"{recipe} ({way})" in said
    assert table.psnr_db[1:].gt(20).all()
    assert table.ssim[1:].notna().all()
    assert (table[["load_peak_bytes", "peak_bytes"]].max(axis=1) + CONTEXT_BYTES <= there).all()
    assert_as_predicted(narrow_flux, table)


@pytest.mark.sweep
def test_text_encoder_and_denoiser_in_int4_run_on_12_gb(test_card, narrow_flux, tmp_path):
    asked = "int4 text_encoder_2=int4"
    _, there, _, table = compared(test_card, narrow_flux, tmp_path / "run", 12, "--recipe", asked)
    assert list(table.status) == ["ok"] * 2
    row = table.set_index("recipe").loc[asked]
    assert row.offload == "none"
    assert row.psnr_db > 15
    assert row.load_peak_bytes + CONTEXT_BYTES <= there
    assert table.offload[0] == "group"  # where the text encoder leaves before the denoiser, too
    assert_as_predicted(narrow_flux, table, encodes=True)


@pytest.mark.sweep
@pytest.mark.parametrize("way", WAYS)
def test_every_way_takes_what_is_planned(test_card, narrow_flux, tmp_path, way):
    """A small picture, so that the denoiser's own needs aren't hidden by the VAE's."""
    _, _, _, table = compared(
        test_card, narrow_flux, tmp_path / "run", 80, "--weights", "none,float8,int8,int4,int2",
        "--offload", way, size="64x64",
    )  # fmt: skip
    assert list(table.offload) == [way] * 5
    assert_as_predicted(narrow_flux, table, "64x64")


@pytest.mark.sweep  # of smaller encoders: tests/card/test_encoding.py, always
def test_encoding_takes_what_is_planned(test_card, narrow_flux, tmp_path):
    card, _, _, _ = compared(
        test_card, narrow_flux, tmp_path / "run", 80, "--weights", "int4", size="64x64"
    )
    counted = max(line["devices"][0]["peak"] for line in card.log if line.get("job") == "encode")
    planned = plan(narrow_flux, ["int4"], size=(64, 64))
    said = planned.loc[planned.component == PIPELINE, "encode_bytes"].iloc[0] - CONTEXT_BYTES
    context = CONTEXT_BYTES / SCALE
    assert said + context == pytest.approx(counted + context, rel=0.05)
