"""A card that doesn't hold the reference: it is offloaded, and every row has its quality."""

import pytest

from quantolab.planning.plan import PIPELINE, plan
from quantolab.report.tables import read_table
from quantolab.run.ways import OFFLOADS

ASKED = ("--size", "32x32", "--steps", "1", "--repeats", "1", "--prompt", "a cat")


@pytest.fixture(scope="module")
def too_small(test_card, pipeline_folder, tmp_path_factory):
    table = plan(pipeline_folder, ["none", "int8"], size=(32, 32))
    needed = table[table.component == PIPELINE].set_index("recipe").resident_bytes
    size = (needed["none"] + needed["int8"]) // 2
    card, out = test_card(size, context=500_000_000), tmp_path_factory.mktemp("run") / "out"
    done = card.command(
        "compare", str(pipeline_folder), "--weights", "none,int8", "--device", "cuda",
        *ASKED, "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return size, done.stdout, read_table(out / "results.csv")


def test_the_reference_is_there_and_judges(too_small):
    size, _, table = too_small
    assert list(table.status) == ["ok", "ok"]
    assert table.offload[0] in OFFLOADS[1:]
    assert table.offload[1] == "none"
    assert table.psnr_db[1] > 20
    assert (table.peak_bytes + 500_000_000 <= size).all()


def test_its_way_is_said_and_its_seconds_have_no_verdict(too_small):
    _, said, table = too_small
    way = table.offload[0]
    assert f"none by --offload {way}" in said
    assert f"Offloaded, so no verdict on speed: none ({way})." in said
    assert "Speeds are told against int8, the most precise that was timed whole." in said
    assert list(table.speed_reference) == [None, "int8"]
    assert table.latency_seconds.notna().all()


def test_a_way_that_is_asked_for_is_all_recipes(test_card, pipeline_folder, tmp_path):
    card, out, way = test_card(2_000_000_000), tmp_path / "out", "group"
    done = card.command(
        "compare", str(pipeline_folder), "--weights", "none,int8", "--device", "cuda",
        "--offload", way, *ASKED, "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_table(out / "results.csv")
    assert list(table.offload) == [way, way]
    assert table.speedup.isna().all()
