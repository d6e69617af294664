"""Runs side by side: one table, one grid, and what differs in how they were made."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import quantolab as ql
from quantolab.cli import main
from quantolab.errors import ArgumentError, ModelNotFoundError
from quantolab.report.beside import readable_runs
from quantolab.run import journal


@pytest.fixture(scope="module")
def folders(make, tmp_path_factory):
    """Two runs of other recipes and seeds, one of them on another machine."""
    place = tmp_path_factory.mktemp("runs")
    fox = make(("none", "int8", "int4"), compiled=(), size=(32, 32))
    dog = make(("none", "int8"), compiled=(), seeds=(1, 5), size=(32, 32))
    other = [
        dataclasses.replace(t, conditions=dataclasses.replace(t.conditions, device_name="M4"))
        for t in dog.trials
    ]
    journal.save(fox, place / "fox")
    journal.save(dataclasses.replace(dog, trials=tuple(other)), place / "dog")
    return place / "fox", place / "dog"


def test_one_table_with_the_columns_of_each(folders):
    side = ql.side_by_side(folders)
    tables = [ql.results_table(ql.load_comparison(folder)) for folder in folders]
    assert side.table.run.tolist() == ["fox"] * 3 + ["dog"] * 2
    rest = side.table.drop(columns="run")
    pd.testing.assert_frame_equal(rest, pd.concat(tables, ignore_index=True), check_dtype=True)
    text = readable_runs(side.table)
    assert [row[:2] for row in text.rows][2:4] == [("fox", "int4"), ("dog", "none")]
    assert all(sentence in str(side) for sentence in side.differences)
    assert "<table" in side._repr_html_()


def test_what_differs_is_said_and_what_follows(folders):
    said = ql.side_by_side(folders).differences
    assert said == (
        "Seeds: 2 in fox, 2 in dog, 1 in all of them.",
        "Machine: AMD EPYC 9R14 in fox, M4 in dog.",
        "So seconds can be compared within a run, not from one to the other.",
        "The unquantized pictures of fox and dog are the same.",
    )


def test_equal_runs_and_other_pictures(make):
    one = make(("none", "int8"), compiled=(), size=(32, 32))
    assert ql.side_by_side([one, one.__class__(**vars(one))]).differences == (
        "These runs were made under the same conditions.",
        "The unquantized pictures of comparison 1 and comparison 2 are the same.",
    )
    images = dict(one.images)
    place = one.workload.pairs[0]
    picture = images["none", *place]
    images["none", *place] = picture.point(lambda level: min(255, level + 1))
    last = ql.side_by_side([one, dataclasses.replace(one, images=images)]).differences[-1]
    assert last.startswith("The unquantized pictures of comparison 1 and comparison 2 differ (")


def test_one_grid_with_a_recipes_columns_together(folders):
    side = ql.side_by_side(folders)
    assert [(c.name, c.rest) for c in side.content.columns] == [
        ("none", "fox"), ("none", "dog"), ("int8", "fox"), ("int8", "dog"), ("int4", "fox"),
    ]  # fmt: skip
    assert [row.seed for row in side.content.rows] == [0, 1, 5] * 2
    assert [row.first for row in side.content.rows] == [True, False, False] * 2
    for name, comparison in side.runs.items():
        for (label, *place), picture in comparison.images.items():
            assert np.array_equal(side.images[f"{label} · {name}", *place], picture)
    figure = side.grid()
    assert len(figure.axes) == len(side.images) == 4 * 3 + 4 * 2
    assert all(s.rstrip(".") in side.content.footer for s in side.differences)


def test_folders_of_one_name_are_told_apart(folders, make, tmp_path):
    journal.save(make(("none",), compiled=(), size=(32, 32)), tmp_path / "fox")
    side = ql.side_by_side([folders[0], tmp_path / "fox"])
    assert list(side.runs) == [f"{folders[0].parent.name}/fox", f"{tmp_path.name}/fox"]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_are_refused(folders, count):
    with pytest.raises(ArgumentError, match="two runs or more"):
        ql.side_by_side(folders[:count])


def test_a_run_twice_and_no_run_are_refused(folders, tmp_path):
    with pytest.raises(ArgumentError, match="more than once"):
        ql.side_by_side([folders[0], folders[0] / "." / ".." / "fox"])
    with pytest.raises(ModelNotFoundError, match="holds no comparison"):
        ql.side_by_side([folders[0], tmp_path])


def test_by_the_command(folders, tmp_path, capsys):
    csv, grid = tmp_path / "both.csv", tmp_path / "both.png"
    named = [word for folder in folders for word in ("--beside", str(folder))]
    assert main(["runs", *named, "--csv", str(csv), "--grid", str(grid)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run  recipe") and "- Machine: AMD EPYC 9R14 in fox, M4 in dog." in said
    assert pd.read_csv(csv, keep_default_na=False).run.tolist() == ["fox"] * 3 + ["dog"] * 2
    with Image.open(grid) as picture:
        assert picture.size == ql.side_by_side(folders).grid().canvas.get_width_height()
    assert main(["runs", *named[:2]]) == 2
    assert main(["runs", "--grid", str(grid)]) == 2
    assert "--beside" in capsys.readouterr().err
