"""The results table, cell by cell, through files and as text."""

import dataclasses
import io
import math

import numpy as np
import pandas as pd
import pytest

from quantolab.errors import ArgumentError, ModelNotFoundError
from quantolab.recipes import Recipe
from quantolab.records import Comparison, Conditions, PictureQuality, Timing, Trial, Workload
from quantolab.report.tables import (
    COLUMNS,
    EXTRA_COLUMNS,
    markdown_table,
    read_table,
    readable,
    reference_row,
    results_table,
    split_label,
    text_table,
)

CONTRACT = (
    "recipe, weights, skip, components, status, reason, weight_bytes, predicted_weight_bytes, "
    "file_bytes, peak_bytes, load_seconds, latency_seconds, latency_low_seconds, "
    "latency_high_seconds, repeats, speedup, psnr_db, ssim, model, device, compute_dtype, steps, "
    "seeds, size, compiled, torch, diffusers, quanto"
)
CONDITIONS = Conditions("AMD EPYC", 2, "Linux", "3.12", "2.13.0", "0.42.1", "5.1.0", "0.2.7")


def by_hand(**changes):
    """Return three trials whose figures can be worked out in the head."""
    quality = (
        PictureQuality("a red circle", 0, 30.0, 0.8),
        PictureQuality("a red circle", 1, 40.0, 0.9),
    )
    reference = Trial(
        Recipe("none"), "ok", weight_bytes=4_000, predicted_weight_bytes=4_000, file_bytes=4_100,
        peak_bytes=9_000_000, load_seconds=0.5, timing=Timing((1.0, 1.0, 1.0), (3.0,)),
        conditions=CONDITIONS,
    )  # fmt: skip
    int4 = Trial(
        Recipe("int4", ("proj_out", "x_embedder")), "ok", weight_bytes=1_000,
        predicted_weight_bytes=1_000, timing=Timing((2.0, 2.0, 2.0), (3.0,)), quality=quality,
        kept_layers=("transformer.proj_out",), notes=("a note", "another"),
        conditions=CONDITIONS, components=("transformer",),
    )  # fmt: skip
    int2 = Trial(Recipe("int2"), "failed", "out of memory", predicted_weight_bytes=600)
    workload = Workload("demo", ("a red circle",), (0, 1), 20, None, (128, 96), "float32", "cpu", 3)
    comparison = Comparison(workload, (reference, int4, int2))
    return dataclasses.replace(comparison, **changes)


def cells(comparison, position):
    """Return a row of the table as plain values, None for absent."""
    row = results_table(comparison).iloc[position].to_dict()
    return {name: None if pd.isna(value) else value for name, value in row.items()}


SHARED = {
    "other_load": None, "name": None,
    "model": "demo", "device": "cpu", "compute_dtype": "float32", "steps": 20, "seeds": "0, 1",
    "size": "128x96", "compiled": False, "guidance": None, "prompts": "a red circle",
    "revision": None, "compile_seconds": None, "peak_method": None,
}  # fmt: skip
VERSIONS = {
    "torch": "2.13.0", "diffusers": "0.42.1", "quanto": "0.2.7", "transformers": "5.1.0",
    "device_name": "AMD EPYC", "threads": 2, "platform": "Linux", "python": "3.12",
}  # fmt: skip


def test_the_columns_of_the_contract_come_first():
    assert ", ".join(COLUMNS) == CONTRACT
    assert tuple(results_table(by_hand()).columns) == COLUMNS + EXTRA_COLUMNS


def test_the_reference():
    assert cells(by_hand(), 0) == SHARED | VERSIONS | {
        "recipe": "none", "weights": "none", "skip": "", "components": "", "status": "ok",
        "reason": None, "weight_bytes": 4_000, "predicted_weight_bytes": 4_000,
        "file_bytes": 4_100, "peak_bytes": 9_000_000, "load_seconds": 0.5,
        "latency_seconds": 1.0, "latency_low_seconds": 1.0, "latency_high_seconds": 1.0,
        "repeats": 3, "speedup": 1.0, "psnr_db": None, "ssim": None, "psnr_worst_db": None,
        "ssim_worst": None, "verdict": None, "kept_layers": 0, "notes": "",
    }  # fmt: skip


def test_a_recipe():
    assert cells(by_hand(), 1) == SHARED | VERSIONS | {
        "recipe": "int4 proj_out=none x_embedder=none", "weights": "int4",
        "skip": "proj_out, x_embedder", "components": "transformer", "status": "ok",
        "reason": None, "weight_bytes": 1_000, "predicted_weight_bytes": 1_000,
        "file_bytes": None, "peak_bytes": None, "load_seconds": None, "latency_seconds": 2.0,
        "latency_low_seconds": 2.0, "latency_high_seconds": 2.0, "repeats": 3, "speedup": 0.5,
        "psnr_db": 35.0, "ssim": pytest.approx(0.85), "psnr_worst_db": 30.0, "ssim_worst": 0.8,
        "verdict": "2.00x slower", "kept_layers": 1, "notes": "a note; another",
    }  # fmt: skip


def test_a_failed_recipe_is_a_row_with_its_reason():
    row = cells(by_hand(), 2)
    assert (row["status"], row["reason"]) == ("failed", "out of memory")
    assert row["predicted_weight_bytes"] == 600
    known = {"recipe", "weights", "skip", "components", "status", "reason", "notes"}
    known |= {"predicted_weight_bytes", *(k for k, v in SHARED.items() if v is not None)}
    assert {name for name, value in row.items() if value is not None} == known


def test_absent_is_never_zero_and_types_hold_when_everything_is_absent():
    reason = "the machine went away"
    table = results_table(by_hand(trials=(Trial(Recipe("int8"), "failed", reason),)))
    assert not (table == 0).drop(columns="compiled").to_numpy(dtype=object, na_value=False).any()
    assert {str(table[c].dtype) for c in COLUMNS if c.endswith("_bytes")} == {"Int64"}
    assert {str(table[c].dtype) for c in COLUMNS if c.endswith("_seconds")} == {"float64"}
    assert table["reason"].tolist() == [reason]
    assert table["torch"].tolist() == [None]


def test_without_a_reference_nothing_is_judged():
    comparison = by_hand()
    row = cells(dataclasses.replace(comparison, trials=comparison.trials[1:]), 0)
    assert (row["speedup"], row["verdict"]) == (None, None)
    assert row["latency_seconds"] == 2.0


def test_identical_pictures_make_the_mean_infinite():
    comparison = by_hand()
    quality = (comparison.trials[1].quality[0], PictureQuality("a red circle", 1, math.inf, 1.0))
    trials = (comparison.trials[0], dataclasses.replace(comparison.trials[1], quality=quality))
    row = cells(dataclasses.replace(comparison, trials=trials), 1)
    assert (row["psnr_db"], row["psnr_worst_db"]) == (math.inf, 30.0)


def test_one_repeat_has_a_speedup_but_no_interval_and_no_verdict():
    trials = [
        dataclasses.replace(trial, timing=Timing(trial.timing.samples[:1]))
        for trial in by_hand().trials[:2]
    ]
    row = cells(by_hand(trials=tuple(trials)), 1)
    assert (row["latency_seconds"], row["repeats"], row["speedup"]) == (2.0, 1, 0.5)
    assert (row["latency_low_seconds"], row["latency_high_seconds"]) == (None, None)
    assert row["verdict"] is None


def test_latencies_of_different_machines_are_not_divided():
    reference, int4, _ = by_hand().trials
    for change in ({"device_name": "Apple M4"}, {"threads": 8}, {"torch": "2.14.0"}):
        moved = dataclasses.replace(int4, conditions=dataclasses.replace(CONDITIONS, **change))
        row = cells(by_hand(trials=(reference, moved)), 1)
        assert (row["latency_seconds"], row["speedup"], row["verdict"]) == (2.0, None, None)


def test_components_asked_for_are_named_even_if_the_trial_never_got_to_them():
    recipe = Recipe("int2", components=("transformer", "text_encoder"))
    failed = Trial(recipe, "failed", "killed")
    assert cells(by_hand(trials=(failed,)), 0)["components"] == "transformer, text_encoder"


def test_the_compiled_reference_is_judged_like_any_other(make):
    table = results_table(make(["none", "int8"], compiled=("none",)))
    assert table["recipe"].tolist() == ["none", "none compiled", "int8"]
    assert table["psnr_db"].isna().tolist() == [True, False, False]
    assert reference_row(table) == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_files_bring_back_the_same_table(make, tmp_path, suffix, seeds):
    comparison = make(
        ["none", "int8", Recipe("int4", ("proj_out", "*.attn")), "int2"],
        failed={"int2": ("unsupported", 'it said "no, never",\nand meant it')},
        prompts=("NA", "a, b | c"), seeds=seeds,
    )  # fmt: skip
    table = results_table(comparison)
    table.loc[1, "psnr_db"] = math.inf
    path = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), table)


def test_pandas_alone_reads_the_same_figures(broken):
    table = results_table(broken)
    back = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for name in COLUMNS:
        if name.endswith(("_bytes", "_seconds", "_db")) or name in ("speedup", "ssim", "repeats"):
            expected = table[name].astype("float64").to_numpy(na_value=np.nan)
            np.testing.assert_array_equal(back[name].to_numpy(dtype=float), expected)
    assert text_table(back) == text_table(table)


def test_a_table_that_is_not_there_or_not_one(tmp_path):
    with pytest.raises(ModelNotFoundError) as caught:
        read_table(tmp_path / "results.csv")
    assert str(caught.value) == f"there is no table at {tmp_path / 'results.csv'}"
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArgumentError, match=r"^this is no results table: it lacks recipe, w"):
        read_table(tmp_path / "other.csv")
    with pytest.raises(ArgumentError) as caught:
        readable(results_table(by_hand()).drop(columns=["ssim", "status"]))
    assert str(caught.value) == (
        "this is no results table: it lacks status, ssim "
        "(results_table makes one from a comparison)"
    )


def test_readable_cells():
    text = readable(results_table(by_hand()))
    assert text.headers == (
        "recipe", "weights", "peak", "per picture", "speed", "PSNR", "SSIM", "status",
    )  # fmt: skip
    assert text.rows == (
        ("none", "4.00 kB  1.00x", "9.00 MB", "1.00 s (1.00–1.00)", "reference", "–", "–", "ok"),
        (
            "int4 proj_out=none x_embedder=none", "1.00 kB  0.25x", "–",
            "2.00 s (2.00–2.00)", "2.00x slower", "35.0 dB", "0.850", "ok",
        ),
        ("int2", "–", "–", "–", "–", "–", "–", "failed"),
    )  # fmt: skip
    assert text.reasons == (None, None, "out of memory")
    assert text.notes == ("In brackets: 95 % interval of the median.",)


def test_text_for_the_terminal():
    assert text_table(results_table(by_hand())).splitlines() == [
        "recipe         weights     peak         per picture         speed     PSNR   SSIM  status",
        "-" * 89,
        "none    4.00 kB  1.00x  9.00 MB  1.00 s (1.00–1.00)     reference        –      –  ok",
        "int4    1.00 kB  0.25x        –  2.00 s (2.00–2.00)  2.00x slower  35.0 dB  0.850  ok",
        "  proj_out=none x_embedder=none",
        "int2    failed: out of memory",
        "",
        "In brackets: 95 % interval of the median.",
    ]


def test_markdown():
    comparison = by_hand()
    trials = (*comparison.trials[:1], dataclasses.replace(comparison.trials[2], reason="a|b <c>"))
    assert markdown_table(results_table(by_hand(trials=trials))).splitlines() == [
        line.strip()
        for line in """\
        | recipe |       weights |    peak |        per picture |     speed | PSNR | SSIM | status |
        | ------ | ------------: | ------: | -----------------: | --------: | ---: | ---: | -----: |
        | none   | 4.00 kB 1.00x | 9.00 MB | 1.00 s (1.00–1.00) | reference |    – |    – |     ok |
        | int2   |             – |       – |                  – |         – |    – |    – | failed |

        - int2 (failed): a\\|b \\<c>
        - In brackets: 95 % interval of the median.""".splitlines()
    ]


@pytest.mark.parametrize("kind", ["comparison", "broken", "everything"])
def test_the_terminal_table_fits(request, make, kind):
    if kind == "everything":
        long = Recipe("int4", ("transformer_blocks.0.*", "proj_out"), ("unet", "text_encoder_2"))
        unsupported = {"float8": ("unsupported", "it needs another machine, " * 9)}
        found = make(["none", "float8", long, "int2"], failed=unsupported, compiled=("int4",))
    else:
        found = request.getfixturevalue(kind)
    lines = text_table(results_table(found)).splitlines()
    assert max(map(len, lines)) <= 100


def test_the_widest_figures_still_fit():
    reference = dataclasses.replace(by_hand().trials[0], weight_bytes=23_800_000_000)
    wide = dataclasses.replace(
        by_hand().trials[1], recipe=Recipe("float8", ("a",)), compiled=True,
        weight_bytes=11_900_000_000, peak_bytes=31_200_000_000,
        timing=Timing((0.9996, 1.0, 1.01, 0.98)),
        quality=(PictureQuality("a red circle", 0, math.inf, 1.0),),
    )  # fmt: skip
    lines = text_table(results_table(by_hand(trials=(reference, wide)))).splitlines()
    assert lines[3:5] == [
        "float8  11.9 GB  0.50x  31.2 GB  1.00 s (0.98–1.01)  no difference  identical  1.000  ok",
        "  compiled, a=none",
    ]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("none", ("none", "")),
        ("int8 compiled", ("int8 compiled", "")),
        ("int4, keeping a and b in unet", ("int4", "keeping a and b in unet")),
        ("int4, keeping a compiled", ("int4 compiled", "keeping a")),
        ("int4 a=none b=none", ("int4", "a=none b=none")),
        ("int4 a=none compiled", ("int4 compiled", "a=none")),
        ("unet=int8 x=int4", ("int8+int4", "unet=int8 x=int4")),
        ("int8 in unet", ("int8", "in unet")),
    ],
)
def test_split_label(label, parts):
    assert split_label(label) == parts


def test_the_table_is_not_changed_by_what_reads_it(broken):
    table = results_table(broken)
    before = table.copy(deep=True)
    text_table(table), markdown_table(table)
    pd.testing.assert_frame_equal(table, before)


def test_a_busy_machine_allows_no_verdict(make):
    import dataclasses

    comparison = make(["none", "int8"], compiled=())
    table = results_table(comparison)
    assert table.verdict[1] is not None
    trials = list(comparison.trials)
    trials[1] = dataclasses.replace(
        trials[1], timing=dataclasses.replace(trials[1].timing, other_load=0.4)
    )
    busy = results_table(dataclasses.replace(comparison, trials=tuple(trials)))
    assert busy.verdict[1] is None
    assert busy.speedup[1] == table.speedup[1]
    assert "other work took up to 40% of the processors' time" in text_table(busy)
