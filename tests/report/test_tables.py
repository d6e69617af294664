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


def in_rounds(seconds, repeats=6):
    """Return a timing of rounds that took the same each time."""
    return Timing((seconds,) * repeats, (3.0,), rounds=tuple(range(repeats)), timed="rounds")


def by_hand(**changes):
    """Return three trials whose figures can be worked out in the head."""
    quality = (
        PictureQuality("a red circle", 0, 30.0, 0.8),
        PictureQuality("a red circle", 1, 40.0, 0.9),
    )
    reference = Trial(
        Recipe("none"), "ok", weight_bytes=4_000, predicted_weight_bytes=4_000, file_bytes=4_100,
        peak_bytes=9_000_000, load_seconds=0.5, timing=in_rounds(1.0),
        conditions=CONDITIONS,
    )  # fmt: skip
    int4 = Trial(
        Recipe("int4", ("proj_out", "x_embedder")), "ok", weight_bytes=1_000,
        predicted_weight_bytes=1_000, timing=in_rounds(2.0), quality=quality,
        kept_layers=("transformer.proj_out",), notes=("a note", "another"),
        conditions=CONDITIONS, components=("transformer",),
    )  # fmt: skip
    int2 = Trial(Recipe("int2"), "failed", "out of memory", predicted_weight_bytes=600)
    workload = Workload("demo", ("a red circle",), (0, 1), 20, None, (128, 96), "float32", "cpu", 6)
    comparison = Comparison(workload, (reference, int4, int2))
    return dataclasses.replace(comparison, **changes)


def cells(comparison, position):
    """Return a row of the table as plain values, None for absent."""
    row = results_table(comparison).iloc[position].to_dict()
    return {name: None if pd.isna(value) else value for name, value in row.items()}


SHARED = {
    "other_load": None, "private_bytes": None, "flip": None, "floor_multiple": None, "name": None,
    "encoded": None, "psnr_low_db": None, "psnr_high_db": None, "more_rounds": None,
    "offload": None, "reference": None, "lora": None, "frames": None,
    "reserved_bytes": None, "load_peak_bytes": None, "free_before_bytes": None, "other_bytes": None,
    "kernel": None,
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
        "backend": None, "backend_version": None,
        "reason": None, "weight_bytes": 4_000, "predicted_weight_bytes": 4_000,
        "file_bytes": 4_100, "peak_bytes": 9_000_000, "load_seconds": 0.5,
        "latency_seconds": 1.0, "latency_low_seconds": 1.0, "latency_high_seconds": 1.0,
        "timed": "rounds", "timed_by": "AMD EPYC (2 threads)",
        "speed_reference": "none", "speedup_low": None, "speedup_high": None,
        "identical_pictures": None, "pictures": None,
        "repeats": 6, "speedup": 1.0, "psnr_db": None, "ssim": None, "psnr_worst_db": None,
        "ssim_worst": None, "verdict": None, "kept_layers": 0, "notes": "",
    }  # fmt: skip


def test_a_recipe():
    assert cells(by_hand(), 1) == SHARED | VERSIONS | {
        "recipe": "int4 proj_out=none x_embedder=none", "weights": "int4",
        "backend": "quanto", "backend_version": VERSIONS["quanto"],
        "skip": "proj_out, x_embedder", "components": "transformer", "status": "ok",
        "reason": None, "weight_bytes": 1_000, "predicted_weight_bytes": 1_000,
        "file_bytes": None, "peak_bytes": None, "load_seconds": None, "latency_seconds": 2.0,
        "latency_low_seconds": 2.0, "latency_high_seconds": 2.0, "repeats": 6, "speedup": 0.5,
        "timed": "rounds", "timed_by": "AMD EPYC (2 threads)",
        "speed_reference": "none", "speedup_low": 0.5, "speedup_high": 0.5,
        "identical_pictures": 0, "pictures": 2,
        "psnr_db": pytest.approx(10 * math.log10(2 / (1e-3 + 1e-4))),
        "ssim": pytest.approx(0.85), "psnr_worst_db": 30.0, "ssim_worst": 0.8,
        "verdict": "slower", "kept_layers": 1, "notes": "a note; another", "reference": "none",
    }  # fmt: skip


def test_a_failed_recipe_is_a_row_with_its_reason():
    row = cells(by_hand(), 2)
    assert (row["status"], row["reason"]) == ("failed", "out of memory")
    assert row["predicted_weight_bytes"] == 600
    known = {"recipe", "weights", "skip", "components", "status", "reason", "notes", "backend"}
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


def with_qualities(*decibels, floor=()):
    """Return the comparison of the second recipe with pictures that far from the reference's."""

    def qualities(values):
        return tuple(PictureQuality("a", n, value, 0.9) for n, value in enumerate(values))

    reference, int4, _ = by_hand().trials
    judged = dataclasses.replace(int4, quality=qualities(decibels))
    return by_hand(trials=(reference, judged), floor=qualities(floor))


def test_one_identical_picture_doesnt_hide_the_others():
    comparison = with_qualities(math.inf, 12.0, 12.0, 12.0)
    row = cells(comparison, 1)
    assert row["psnr_db"] == pytest.approx(13.25, abs=0.01)
    assert (row["psnr_worst_db"], row["identical_pictures"], row["pictures"]) == (12.0, 1, 4)
    text = text_table(results_table(comparison))
    assert "13.2 dB" in text
    assert "1 of 4 pictures identical" in text


def test_an_interval_over_pictures_from_six_on():
    assert cells(with_qualities(30.0, 31.0, 32.0, 33.0, 34.0), 1)["psnr_low_db"] is None
    row = cells(with_qualities(30.0, 31.0, 32.0, 33.0, 34.0, 35.0), 1)
    assert 30 < row["psnr_low_db"] < row["psnr_db"] < row["psnr_high_db"] < 35


def test_multiples_of_the_floor():
    row = cells(with_qualities(40.0, 40.0, floor=(60.0, 60.0)), 1)
    assert row["floor_multiple"] == pytest.approx(10)
    assert "10x" in text_table(results_table(with_qualities(40.0, 40.0, floor=(60.0, 60.0))))
    assert (
        cells(with_qualities(40.0, 40.0, floor=(math.inf, math.inf)), 1)["floor_multiple"] is None
    )


@pytest.mark.parametrize("repeats", range(1, 6))
def test_few_rounds_have_a_speedup_but_no_interval_and_no_verdict(repeats):
    trials = [
        dataclasses.replace(trial, timing=in_rounds(seconds, repeats))
        for trial, seconds in zip(by_hand().trials[:2], (1.0, 2.0), strict=True)
    ]
    comparison = by_hand(trials=tuple(trials))
    row = cells(comparison, 1)
    assert (row["latency_seconds"], row["repeats"]) == (2.0, repeats)
    assert row["speedup"] == pytest.approx(0.5)
    assert (row["latency_low_seconds"], row["latency_high_seconds"]) == (None, None)
    assert (row["verdict"], row["speedup_low"]) == (None, None)
    said = "Too few rounds for intervals and verdicts on speed: 6 are needed."
    assert said in text_table(results_table(comparison))


def test_what_was_timed_one_after_the_other_has_no_verdict():
    trials = [
        dataclasses.replace(t, timing=Timing((s,) * 9))
        for t, s in zip(by_hand().trials[:2], (1.0, 2.0), strict=True)
    ]
    row = cells(by_hand(trials=tuple(trials)), 1)
    assert (row["speedup"], row["verdict"], row["timed"]) == (0.5, None, "alone")
    text = text_table(results_table(by_hand(trials=tuple(trials))))
    assert "Timed one after the other, so speeds have no verdict." in text


def test_what_is_not_decided_says_how_many_rounds_would():
    reference, int4, _ = by_hand().trials
    open_ = Timing((0.9, 1.1, 1.0, 1.05, 1.2, 0.95), rounds=tuple(range(6)), timed="pairs")
    table = results_table(by_hand(trials=(reference, dataclasses.replace(int4, timing=open_))))
    assert table.verdict[1] == "not decided"
    assert table.more_rounds[1] > 0
    text = " ".join(text_table(table).split())
    assert f"Not decided: it would take about {round(table.more_rounds[1], -1)} more rounds" in text
    assert "Timed in pairs with the reference" in text


def test_latencies_of_different_machines_are_not_divided():
    reference, int4, _ = by_hand().trials
    for change in ({"device_name": "Apple M4"}, {"threads": 8}, {"torch": "2.14.0"}):
        moved = dataclasses.replace(int4, conditions=dataclasses.replace(CONDITIONS, **change))
        row = cells(by_hand(trials=(reference, moved)), 1)
        assert (row["latency_seconds"], row["speedup"], row["verdict"]) == (2.0, None, None)


def test_a_row_says_by_which_device_it_was_timed():
    other = dataclasses.replace(CONDITIONS, device_name="Apple M4", threads=1)
    trials = [dataclasses.replace(trial, timed_on=other) for trial in by_hand().trials[:2]]
    row = cells(by_hand(trials=tuple(trials)), 1)
    assert (row["device_name"], row["timed_by"]) == ("AMD EPYC", "Apple M4 (1 thread)")
    assert row["verdict"] == "slower"  # both were
    apart = by_hand(trials=(by_hand().trials[0], trials[1]))
    assert (cells(apart, 1)["speedup"], cells(apart, 1)["verdict"]) == (None, None)
    said = " ".join(text_table(results_table(apart)).split())
    assert "Timed none by AMD EPYC (2 threads); int4" in said
    assert "by Apple M4 (1 thread): speeds on different devices have no verdict." in said


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
    text = table.to_csv(index=False)
    back = pd.read_csv(io.StringIO(text))
    for name in COLUMNS:
        if name.endswith(("_bytes", "_seconds", "_db")) or name in ("speedup", "ssim", "repeats"):
            expected = table[name].astype("float64").to_numpy(na_value=np.nan)
            # pandas 2 is a rounding off
            np.testing.assert_allclose(back[name].to_numpy(dtype=float), expected, rtol=1e-15)
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
        "recipe", "weights", "memory", "per picture", "speed", "PSNR", "floor", "SSIM", "status",
    )  # fmt: skip
    assert text.rows == (
        (
            "none", "4.00 kB  1.00x", "9.00 MB", "1.00 s (1.00–1.00)", "reference",
            "–", "–", "–", "ok",
        ),
        (
            "int4 proj_out=none x_embedder=none", "1.00 kB  0.25x", "–",
            "2.00 s (2.00–2.00)", "2.00x slower (2.00–2.00)", "32.6 dB", "–", "0.850", "ok",
        ),
        ("int2", "–", "–", "–", "–", "–", "–", "–", "failed"),
    )  # fmt: skip
    assert text.reasons == (None, None, "out of memory")
    assert text.notes == ("In brackets: 95 % intervals.",)


def test_text_for_the_terminal():
    head, line, none, int4, *rest = text_table(results_table(by_hand())).splitlines()
    assert head.split() == [
        "recipe", "weights", "memory", "per", "picture", "speed", "PSNR", "floor", "SSIM", "status",
    ]  # fmt: skip
    assert set(line) == {"-"}
    assert none.split()[:6] == ["none", "4.00", "kB", "1.00x", "9.00", "MB"]
    assert "2.00x slower (2.00–2.00)  32.6 dB      –  0.850  ok" in int4
    assert rest == [
        "  proj_out=none x_embedder=none",
        "int2    failed: out of memory",
        "",
        "In brackets: 95 % intervals.",
    ]


def test_markdown():
    comparison = by_hand()
    trials = (*comparison.trials[:1], dataclasses.replace(comparison.trials[2], reason="a|b <c>"))
    lines = markdown_table(results_table(by_hand(trials=trials))).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "none", "4.00 kB 1.00x", "9.00 MB", "1.00 s (1.00–1.00)", "reference", "–", "–", "–", "ok",
    ]  # fmt: skip
    assert lines[4:] == ["", "- int2 (failed): a\\|b \\<c>", "- In brackets: 95 % intervals."]


@pytest.mark.parametrize("kind", ["comparison", "broken", "everything"])
def test_the_terminal_table_fits(request, make, kind):
    if kind == "everything":
        long = Recipe("int4", ("transformer_blocks.0.*", "proj_out"), ("unet", "text_encoder_2"))
        unsupported = {"float8": ("unsupported", "it needs another machine, " * 9)}
        found = make(["none", "float8", long, "int2"], failed=unsupported, compiled=("int4",))
    else:
        found = request.getfixturevalue(kind)
    lines = text_table(results_table(found)).splitlines()
    assert max(map(len, lines)) <= 120


def test_the_widest_figures_still_fit():
    reference = dataclasses.replace(by_hand().trials[0], weight_bytes=23_800_000_000)
    wide = dataclasses.replace(
        by_hand().trials[1], recipe=Recipe("float8", ("a",)), compiled=True,
        weight_bytes=11_900_000_000, peak_bytes=31_200_000_000,
        timing=Timing((12.0, 12.1, 11.9, 12.0, 12.2, 11.9), rounds=tuple(range(6)), timed="rounds"),
        quality=tuple(PictureQuality("a", n, 30.0 + n, 1.0) for n in range(6)),
    )  # fmt: skip
    floor = tuple(PictureQuality("a", n, 70.0 + n, 1.0) for n in range(6))
    table = results_table(by_hand(trials=(reference, wide), floor=floor))
    lines = text_table(table).splitlines()
    assert "12.0x slower (11.9–12.2)  32.2 dB (3" in lines[3]
    assert lines[4] == "  compiled, a=none"
    assert max(map(len, lines)) <= 120


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


def test_a_busy_machine_is_told_and_withholds_nothing(make):
    comparison = make(["none", "int8"], compiled=(), repeats=10)
    table = results_table(comparison)
    trials = list(comparison.trials)
    trials[1] = dataclasses.replace(
        trials[1], timing=dataclasses.replace(trials[1].timing, other_load=0.4)
    )
    busy = results_table(dataclasses.replace(comparison, trials=tuple(trials)))
    assert busy.verdict[1] == table.verdict[1] is not None
    assert "Other work took up to 40% of the processors' time." in text_table(busy)


def test_memory_on_a_cpu_is_what_a_recipe_holds_itself_and_libraries_are_said_once():
    trials = [
        dataclasses.replace(trial, private_bytes=own, peak_bytes=400_000_000 + own)
        for trial, own in zip(by_hand().trials[:2], (50_000_000, 20_000_000), strict=True)
    ]
    text = text_table(results_table(by_hand(trials=tuple(trials))))
    assert "50.0 MB" in text
    assert "20.0 MB" in text
    assert text.count("400 MB") == 1
