"""`skip_report` shows what a skip list hits, what Diffusers would make of it, and its price."""

import pytest

import quantolab as ql
from quantolab.errors import ArgumentError
from quantolab.planning.skips import skip_report

COLUMNS = [
    "component",
    "path",
    "in_features",
    "out_features",
    "skipped",
    "pattern",
    "diffusers_skips",
    "bytes_none",
    "bytes_float8",
    "bytes_int8",
    "bytes_int4",
    "bytes_int2",
]


def test_flux_dev(flux_dev):
    table = skip_report(flux_dev)
    assert list(table.columns) == COLUMNS
    assert len(table) == 504
    assert not table.skipped.any() and not table.diffusers_skips.any()
    assert table.pattern.isna().all()
    assert set(table.component) == {"transformer"}
    # The rest of the transformer, biases and norms, isn't quantized.
    rest = 23_802_816_640 - table.bytes_none.sum()
    assert table.bytes_int8.sum() + rest == 11_910_627_552
    assert table.bytes_int4.sum() + rest == 6_327_162_976
    assert table.bytes_int2.sum() + rest == 3_352_582_240
    totals = table.attrs["totals"]
    assert totals["int8"] == {"bytes": int(table.bytes_int8.sum()), "added": 0}
    assert list(totals) == ["float8", "int8", "int4", "int2"]


def test_a_leaf_name_costs_more_than_it_seems_to(flux_dev):
    """``proj_out`` is meant for the last layer, and keeps one in every single block too."""
    table = skip_report(flux_dev, "proj_out")
    kept = table[table.skipped]
    assert len(kept) == 39
    assert (table.skipped == table.diffusers_skips).all()
    assert set(kept.pattern) == {"proj_out"}
    added = table.attrs["totals"]["int8"]["added"]
    assert added == int((kept.bytes_none - kept.bytes_int8).sum())
    assert round(added / 2**30, 2) == 1.67


@pytest.mark.parametrize(
    ("skip", "ours", "diffusers"),
    [
        (["norm_out"], 1, 0),  # a container
        (["transformer_blocks.0.attn.to_q"], 1, 0),  # a full path
        (["*.to_q"], 57, 0),  # a glob
        (["to_q", "to_k", "to_v"], 171, 171),
        (["linear"], 77, 77),
        (["x_embedder", "context_embedder", "proj_out"], 41, 41),
        (["transformer.x_embedder"], 1, 0),
    ],
)
def test_what_diffusers_would_make_of_it(flux_dev, skip, ours, diffusers):
    table = skip_report(flux_dev, skip)
    assert (table.skipped.sum(), table.diffusers_skips.sum()) == (ours, diffusers)


def test_a_dead_pattern_is_an_error(flux_dev):
    with pytest.raises(ArgumentError, match="did you mean 'proj_out'"):
        skip_report(flux_dev, ["proj_ot"])
    with pytest.raises(ArgumentError, match="compute dtype 'int8' is not known"):
        skip_report(flux_dev, dtype="int8")


def test_several_components(pipeline_folder):
    table = skip_report(
        pipeline_folder,
        ["text_encoder_2.encoder", "x_embedder"],
        components=("transformer", "text_encoder_2"),
    )
    kept = table[table.skipped].groupby("component").size()
    encoder = table[table.component == "text_encoder_2"]
    assert kept.to_dict() == {"text_encoder_2": len(encoder), "transformer": 1}
    one = skip_report(pipeline_folder, component="text_encoder_2")
    assert one.path.tolist() == encoder.path.tolist()


def test_it_says_what_load_does(pipeline_folder):
    skip = ("proj_out", "transformer_blocks.*.ff")
    table = skip_report(pipeline_folder, skip, dtype="float32")
    module = ql.load(pipeline_folder, ql.Recipe("int4", skip=skip), dtype="float32", device="cpu")
    report = module.quantize_report
    assert table[~table.skipped].path.tolist() == list(report.quantized)
    assert table[table.skipped].path.tolist() == [path for path, _ in report.kept]
    rest = ql.weight_bytes(module) - table.attrs["totals"]["int4"]["bytes"]
    plain = ql.load(pipeline_folder, "none", dtype="float32", device="cpu")
    assert rest == ql.weight_bytes(plain) - table.bytes_none.sum()


def test_layers_that_the_model_keeps_in_float32(write_pipeline):
    config = {
        "_class_name": "WanTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 32,
        "ffn_dim": 64, "freq_dim": 32, "text_dim": 32, "num_layers": 1, "rope_max_seq_len": 32,
    }  # fmt: skip
    table = skip_report(write_pipeline("WanPipeline", {"transformer": config}))
    kept = table[table.skipped]
    assert kept.path.tolist() == [f"condition_embedder.time_embedder.linear_{i}" for i in (1, 2)]
    assert set(kept.pattern) == {"the model keeps it in float32"}
    assert (kept.bytes_none == 4 * kept.in_features * kept.out_features).all()
