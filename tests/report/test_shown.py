"""Records as the last line of a notebook's cell."""

import dataclasses

import pandas as pd
import pytest

import quantolab as ql
from quantolab.report.shown import Trial


@pytest.fixture
def odd(make):
    return make(failed={"int2": ("failed", "killed <by> & for")}, size=(16, 16))


def test_a_comparison_shows_its_table(odd):
    html = odd._repr_html_()
    assert html.count("<tr") == 1 + len(odd.trials)
    assert "failed: killed &lt;by&gt; &amp; for" in html
    assert "int4" in html
    assert len(html) < 20_000


def test_its_text_is_short(odd):
    assert repr(odd).startswith(f"<Comparison of {odd.workload.model}, ")
    assert "int2 failed" in repr(odd) and len(repr(odd)) < 200


def test_table_and_grid_are_those_of_the_library(odd):
    assert odd.table.equals(ql.results_table(odd))
    assert odd.grid().get_size_inches().tolist() == ql.image_grid(odd).get_size_inches().tolist()


def test_its_table_has_all_columns_and_shows_those_that_decide(odd):
    table, whole = odd.table, ql.results_table(odd)
    assert list(table.columns) == list(whole.columns)
    html = table._repr_html_()
    assert "<th>floor_multiple</th>" not in html  # nobody's is known
    assert "<th>psnr_db</th>" in html and "<th>torch</th>" not in html
    assert f"{len(whole.columns)} columns in all" in html and "columns in all" in repr(table)
    assert "&lt;by&gt;" in html
    for made in (table[["recipe", "torch"]], table.set_index("recipe"), table.copy()):
        assert "columns in all" not in repr(made)
        assert type(made) is pd.DataFrame


def test_what_names_in_texts_do_is_nothing():
    trial = Trial(ql.Recipe("int8"), status="failed", reason="<img src=x onerror=alert(1)>")
    assert "<img" not in trial._repr_html_() and "&lt;img" in trial._repr_html_()
    assert "weights" not in trial._repr_html_()  # it has none that were measured


def test_a_missing_picture_is_a_sentence(odd):
    with pytest.raises(KeyError, match=r"no picture 'int8'; a key is \(recipe, prompt, seed\)"):
        odd.images["int8"]
    with pytest.raises(KeyError, match="holds none"):
        dataclasses.replace(odd, images={}).images["int8", "a", 0]
    assert odd.images.get("int8") is None
    assert dict(odd.images) == odd.images


def test_reports_of_saved_folders_show_the_lines_that_they_print():
    from quantolab.saved.changing import ConvertReport

    report = ConvertReport("<saved>", "out", "sdnq", {"": "sdnq:int8"}, 3, 0.0, 9, 9)
    shown = report._repr_html_()
    assert "&lt;saved&gt;" in shown and "<saved>" not in shown
    assert len(shown.splitlines()) == len(str(report).splitlines())
