"""The full-size table, on a small configuration and the CPU."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from quantolab.errors import UnsupportedError
from quantolab.experiments import full_size


def table_of(folder, path, way):
    arguments = [str(folder / "transformer"), "--weights", "none,int4"]
    arguments += ["--pixels", "64", "--tokens", "8"]
    arguments += ["--repeats", "6", "--way", way, "--device", "cpu", "--csv", str(path)]
    assert full_size.main(arguments) == 0
    return pd.read_csv(path)


@pytest.fixture(scope="module")
def table(shallow_pipeline, tmp_path_factory):
    """Eager alone."""
    return table_of(shallow_pipeline, tmp_path_factory.mktemp("eager") / "table.csv", "none")


@pytest.fixture(scope="module")
def compiled(shallow_pipeline, tmp_path_factory):
    """Each row eager, and compiled: minutes of a compiler."""
    path = tmp_path_factory.mktemp("compiled") / "table.csv"
    return table_of(shallow_pipeline, path, "fullgraph")


def test_every_recipe_is_a_row(table):
    rows = list(zip(table.recipe, table.compiled, table.status, strict=True))
    assert rows == [("none", False, "ok"), ("int4", False, "ok")]
    assert (table.image_tokens == 16).all()
    assert (table.step_low_seconds <= table.step_seconds).all()
    assert (table.step_seconds <= table.step_high_seconds).all()
    assert all(len(samples.split()) == 6 for samples in table.samples)
    assert table.peak_method.notna().all()


def test_bytes_are_those_predicted(table):
    assert (table.weight_bytes == table.predicted_weight_bytes).all()
    assert table.weight_bytes[1] < 0.6 * table.weight_bytes[0]


def test_speedup_is_against_the_eager_reference(table):
    assert table.speedup[0] == 1
    assert math.isclose(table.speedup[1], table.step_seconds[0] / table.step_seconds[1])


@pytest.mark.sweep
def test_a_row_eager_and_a_row_compiled(compiled):
    rows = list(zip(compiled.recipe, compiled.compiled, compiled.status, strict=True))
    assert rows == [("none", False, "ok"), ("none", True, "ok"), ("int4", False, "ok"),
                    ("int4", True, "ok")]  # fmt: skip
    assert list(compiled.compile_seconds.notna()) == [False, True, False, True]
    assert (compiled.difference.dropna() < 0.02).all()
    eager, of_int4 = compiled.step_seconds[0], compiled.step_seconds[3]
    assert math.isclose(compiled.speedup[3], eager / of_int4)


def test_other_architectures_are_refused(pipeline_folder, monkeypatch):
    with pytest.raises(UnsupportedError, match="only square pictures"):
        full_size.full_size_table(str(pipeline_folder), size=(64, 32))
