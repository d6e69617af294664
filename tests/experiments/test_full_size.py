"""The full-size table, on a small configuration and the CPU."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from quantolab.errors import UnsupportedError
from quantolab.experiments import full_size


@pytest.fixture(scope="module")
def table(shallow_pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("full-size") / "table.csv"
    arguments = [str(shallow_pipeline / "transformer"), "--weights", "none,int4"]
    arguments += ["--pixels", "64", "--tokens", "8"]
    arguments += ["--repeats", "6", "--way", "fullgraph", "--device", "cpu", "--csv", str(path)]
    assert full_size.main(arguments) == 0
    return pd.read_csv(path)


def test_a_row_eager_and_a_row_compiled(table):
    rows = list(zip(table.recipe, table.compiled, table.status, strict=True))
    assert rows == [("none", False, "ok"), ("none", True, "ok"), ("int4", False, "ok"),
                    ("int4", True, "ok")]  # fmt: skip
    assert (table.image_tokens == 16).all()
    assert (table.step_low_seconds <= table.step_seconds).all()
    assert (table.step_seconds <= table.step_high_seconds).all()
    assert all(len(samples.split()) == 6 for samples in table.samples)
    assert table.peak_method.notna().all()


def test_bytes_are_those_predicted(table):
    assert (table.weight_bytes == table.predicted_weight_bytes).all()
    assert table.weight_bytes[2] < 0.6 * table.weight_bytes[0]


def test_only_compiled_rows_tell_what_compiling_costs(table):
    assert list(table.compile_seconds.notna()) == [False, True, False, True]
    assert (table.difference.dropna() < 0.02).all()


def test_speedup_is_against_the_eager_reference(table):
    assert table.speedup[0] == 1
    assert math.isclose(table.speedup[2], table.step_seconds[0] / table.step_seconds[2])


def test_other_architectures_are_refused(pipeline_folder, monkeypatch):
    with pytest.raises(UnsupportedError, match="only square pictures"):
        full_size.full_size_table(str(pipeline_folder), size=(64, 32))
