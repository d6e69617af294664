"""Text encoders that don't fit on a card are run by the processor, once for all trials."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def wide_pipeline(pipeline_folder, tmp_path_factory):
    """A tiny pipeline whose second text encoder is far larger than its denoiser: 51 MB."""
    import torch
    from transformers import T5Config, T5EncoderModel

    folder = shutil.copytree(pipeline_folder, tmp_path_factory.mktemp("wide") / "model")
    torch.manual_seed(0)
    config = T5Config(
        d_model=64, d_ff=100_000, d_kv=16, num_heads=4, num_layers=2, vocab_size=32, dropout_rate=0
    )
    shutil.rmtree(folder / "text_encoder_2")
    T5EncoderModel(config).to(torch.bfloat16).save_pretrained(folder / "text_encoder_2")
    return folder


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
