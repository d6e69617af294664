"""Figures of a comparison on a card: those of the device that was asked for, and no other's."""

import pytest

from quantolab.report.tables import read_table

SIZE = 100_000_000


@pytest.fixture(scope="module")
def on_the_second(test_card, pipeline_folder, tmp_path_factory):
    card, out = test_card(SIZE, SIZE, context=1_000_000), tmp_path_factory.mktemp("run") / "out"
    done = card.command(
        "compare", str(pipeline_folder), "--weights", "none,int8", "--device", "cuda:1",
        "--offload", "none", "--size", "32x32",
        "--steps", "1", "--repeats", "1", "--prompt", "a cat", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return card, read_table(out / "results.csv")


def test_peaks_are_those_of_the_device(on_the_second):
    card, table = on_the_second
    for row in table.to_dict("records"):
        assert row["weight_bytes"] < row["peak_bytes"] < SIZE
        assert row["peak_bytes"] <= row["reserved_bytes"]
        assert row["weight_bytes"] <= row["load_peak_bytes"]
        assert row["peak_method"].startswith("allocator")
    first, second = table.free_before_bytes
    assert first == SIZE
    assert second < SIZE - table.weight_bytes[0]  # the first waits beside it
    assert max(line["devices"][0]["peak"] for line in card.log) == 0


def test_the_device_is_waited_for(on_the_second):
    card, _ = on_the_second
    assert {line["synchronized"] for line in card.log if "synchronized" in line} == {1}
