"""A card that doesn't hold the reference: it is offloaded, and every row has its quality."""

import pytest

import quantolab as ql
from quantolab.planning.plan import PIPELINE, plan
from quantolab.report.tables import read_table
from quantolab.run.ways import OFFLOADS

ASKED = ("--size", "32x32", "--steps", "1", "--repeats", "1", "--prompt", "a cat")


@pytest.fixture(scope="module")
def too_small(test_card, pipeline_folder, tmp_path_factory):
    table = plan(pipeline_folder, ["none", "int8"], size=(32, 32))
    needed = table[table.component == PIPELINE].set_index("recipe").resident_bytes
    size = (needed["none"] + needed["int8"]) // 2
    card, out = (
        test_card(size, context=500_000_000, block=2),
        tmp_path_factory.mktemp("run") / "out",
    )
    done = card.command(
        "compare", str(pipeline_folder), "--weights", "none,int8", "--device", "cuda",
        *ASKED, "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return size, done.stdout, read_table(out / "results.csv"), needed["int8"]


def test_the_reference_is_there_and_judges(too_small):
    size, _, table, _ = too_small
    assert list(table.status) == ["ok", "ok"]
    assert table.offload[0] in OFFLOADS[1:]
    assert table.offload[1] == "none"
    assert table.psnr_db[1] > 20
    assert (table.peak_bytes + 500_000_000 <= size).all()


def test_its_way_is_said_and_its_seconds_have_no_verdict(too_small):
    _, said, table, _ = too_small
    way = table.offload[0]
    assert f"none by --offload {way}" in said
    assert f"Offloaded, so no verdict on speed: none ({way})." in said
    assert "Speeds are told against int8, the most precise that was timed whole." in said
    assert list(table.speed_reference) == [None, "int8"]
    assert table.latency_seconds.notna().all()


@pytest.mark.sweep
@pytest.mark.parametrize("way", ["group", "sequential"])
def test_a_way_that_is_asked_for_is_all_recipes(test_card, pipeline_folder, tmp_path, way):
    card, out = test_card(2_000_000_000), tmp_path / "out"
    done = card.command(
        "compare", str(pipeline_folder), "--weights", "none,int4", "--device", "cuda",
        "--offload", way, *ASKED, "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_table(out / "results.csv")
    assert list(table.offload) == [way] * 2
    assert (table.psnr_db[1:] > 15).all()
    assert table.speedup.isna().all()


@pytest.fixture(scope="module")
def without_reference(test_card, pipeline_folder, too_small, tmp_path_factory):
    """A card that the reference can't be had on, in the one way that is asked for."""
    *_, size = too_small
    size += 1_000_000  # a part of the file, which weighs nothing beside a real model
    card, out = (
        test_card(size, context=500_000_000, block=2),
        tmp_path_factory.mktemp("run") / "out",
    )
    words = (
        "compare", str(pipeline_folder), "--weights", "none,int8,int4", "--device", "cuda",
        "--offload", "none", *ASKED, "--out", str(out),
    )  # fmt: skip
    return card, words, card.command(*words), out


def test_the_most_precise_stands_in_where_the_reference_cannot_be_had(without_reference):
    _, _, done, out = without_reference
    table = read_table(out / "results.csv").set_index("recipe")
    assert table.status.to_dict() == {"none": "failed", "int8": "ok", "int4": "ok"}
    assert "out of memory" in table.reason["none"].lower()
    assert table.reference["int4"] == table.speed_reference["int4"] == "int8"
    assert table.psnr_db["int4"] > 15
    assert "int8, the most precise that could, stands in for it" in done.stdout
    assert "no speed, PSNR" not in done.stdout


def test_pictures_of_a_cpu_judge_as_its_own_would(without_reference, too_small, tmp_path):
    card, words, _, out = without_reference
    lent = tmp_path / "cpu"
    ql.compare(
        words[1], ["none"], "a cat", size=(32, 32), steps=1, repeats=1, device="cpu", out=lent,
        watch=lambda _: None,
    )  # fmt: skip
    done = card.command(*words, "--resume", "--reference", str(lent))
    assert done.returncode == 1, done.stdout + done.stderr  # none still doesn't fit
    table = read_table(out / "results.csv").set_index("recipe")
    _, _, own, _ = too_small
    assert list(table.reference[["int8", "int4"]]) == [str(lent)] * 2
    assert table.psnr_db["int8"] == pytest.approx(own.psnr_db[1], abs=0.1)
    assert "the reference's" in table.notes["int8"]  # made on another device
