"""Text encoders that don't fit on a card are run by the processor, once for all trials."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest


def with_text_encoder(pipeline, folder, d_ff, layers):
    """Copy the tiny pipeline, with a second text encoder of so many layers of such a width."""
    import torch
    from transformers import T5Config, T5EncoderModel

    copy = shutil.copytree(pipeline, folder / "model")
    torch.manual_seed(0)
    config = T5Config(
        d_model=64, d_ff=d_ff, d_kv=16, num_heads=4, num_layers=layers, vocab_size=32,
        dropout_rate=0,
    )  # fmt: skip
    shutil.rmtree(copy / "text_encoder_2")
    T5EncoderModel(config).to(torch.bfloat16).save_pretrained(copy / "text_encoder_2")
    return copy


@pytest.fixture(scope="module")
def wide_pipeline(pipeline_folder, tmp_path_factory):
    """A tiny pipeline whose second text encoder is far larger than its denoiser: 51 MB."""
    return with_text_encoder(pipeline_folder, tmp_path_factory.mktemp("wide"), 100_000, 2)


@pytest.mark.sweep  # as below, of another shape
def test_what_the_card_does_not_hold_the_processor_encodes(test_card, wide_pipeline, tmp_path):
    card = test_card(30_000_000)
    done = card.command(
        "compare", str(wide_pipeline), "--weights", "none,int8", "--device", "cuda", "--offload",
        "none", "--prompt",
        "a red cat", "--steps", "1", "--repeats", "1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert table.status.tolist() == ["ok", "ok"]
    assert set(table.device) == {"cuda"}
    assert (table.peak_bytes < 30_000_000).all()


@pytest.fixture(scope="module")
def deep_pipeline(pipeline_folder, tmp_path_factory):
    """A tiny pipeline whose second text encoder has many layers: 50 MB, 26 MB in int8."""
    return with_text_encoder(pipeline_folder, tmp_path_factory.mktemp("deep"), 4096, 48)


def test_text_encoders_come_layer_by_layer_and_leave_before_the_denoiser(
    test_card, deep_pipeline, tmp_path
):
    size = 36_000_000  # less than the unquantized text encoder
    done = test_card(size).command(
        "compare", str(deep_pipeline), "--recipe", "int8 text_encoder_2=int8", "--device", "cuda",
        "--offload", "none", "--prompt", "a red cat", "--size", "32x32", "--steps", "1",
        "--repeats", "1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "run" / "results.csv", keep_default_na=False)
    none, int8 = table.to_dict("records")
    assert none["status"] == int8["status"] == "ok"
    assert int8["weight_bytes"] > 26_000_000  # the text encoder's counted among them
    for row in (none, int8):
        assert row["load_peak_bytes"] < size
        assert row["peak_bytes"] < 15_000_000  # while pictures are made it isn't there
    assert "the processor encoded" in none["notes"]
    assert "the processor encoded" not in int8["notes"]
