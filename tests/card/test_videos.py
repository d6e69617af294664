"""Videos on a test card: what a plan says for so many frames is what the card counts."""

from __future__ import annotations

import pytest

from quantolab.planning.needs import CONTEXT_BYTES
from quantolab.planning.plan import PIPELINE, plan
from quantolab.report.tables import read_table

FRAMES, SIDE = 9, 64
CONTEXT = CONTEXT_BYTES // 256


@pytest.fixture(scope="module")
def narrow_wan(tmp_path_factory):
    """Wan, narrow and shallow, of random weights: 40 MB."""
    import torch
    from diffusers import WanTransformer3DModel
    from tiny_pipelines import wan

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("narrow") / "wan"
    pipe = wan()
    pipe.transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=64, in_channels=16,
        out_channels=16, text_dim=32, freq_dim=64, ffn_dim=1024, num_layers=8, rope_max_seq_len=64,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.sweep
def test_what_several_frames_take_is_planned(test_card, narrow_wan, tmp_path):
    card = test_card(1 << 30, context=CONTEXT, block=2)
    done = card.command(
        "compare", str(narrow_wan), "--weights", "none,int8", "--device", "cuda", "--steps", "1",
        "--repeats", "1", "--prompt", "a red cat", "--out", str(tmp_path), "--frames", str(FRAMES),
        "--size", f"{SIDE}x{SIDE}", "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_table(tmp_path / "results.csv")
    assert list(table.status) == ["ok"] * 2 and table.psnr_db.notna()[1]
    assert set(table.frames) == {FRAMES}
    planned = plan(narrow_wan, ["none", "int8"], size=(SIDE, SIDE), frames=FRAMES, dtype="float32")
    planned = planned[planned.component == PIPELINE].set_index("recipe")
    for row in table.itertuples():
        counted = max(row.load_peak_bytes, row.peak_bytes)
        said = planned.loc[row.recipe, "resident_bytes"] - CONTEXT_BYTES
        assert row.offload == "none" and said == pytest.approx(counted, rel=0.05), row.recipe
