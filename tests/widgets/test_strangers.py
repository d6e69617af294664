"""A stranger's run in a panel: whatever its texts say, none of them is markup."""

from __future__ import annotations

import copy
import json

import ipywidgets
import pytest

import quantolab as ql
from quantolab.errors import QuantolabError
from quantolab.report.tables import text_table
from quantolab.run import journal
from quantolab.widgets import explorer

MARK = "<img src=x onerror=alert(1)>\x1b[2J"


@pytest.fixture
def folder(make, tmp_path):
    failed = {"int2": ("failed", "killed")}
    return journal.save(make(failed=failed, size=(32, 32)), tmp_path / "run")


def places(value, here=()):
    """Yield where a record holds texts."""
    if isinstance(value, str):
        yield here
    elif isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*here, key))


def put(record, place, text):
    for key in place[:-1]:
        record = record[key]
    record[place[-1]] = text


def is_read(record, folder) -> bool:
    (folder / "run.json").write_text(json.dumps(record))
    try:
        ql.load_comparison(folder)
    except QuantolabError as error:
        assert "\n" not in str(error)
        return False
    return True


def shown(widget):
    """Yield every text that a panel shows as HTML."""
    if isinstance(widget, ipywidgets.HTML):
        yield widget.value
    for child in getattr(widget, "children", ()):
        yield from shown(child)


def test_no_text_of_a_run_is_markup(folder):
    whole = json.loads((folder / "run.json").read_text())
    taken = 0
    record = copy.deepcopy(whole)
    for place in places(whole):
        before = copy.deepcopy(record)
        put(record, place, MARK)
        if is_read(record, folder):
            taken += 1
        else:  # one of few words, such as a status, or part of a picture's name
            record = before
            assert place[-1] != "reason"
    assert taken > 50
    assert is_read(record, folder)
    assert {trial["status"] for trial in record["trials"]} == {"ok", "failed"}
    comparison = ql.load_comparison(folder)
    panel = explorer(run=folder)
    try:
        texts = [*shown(panel), comparison._repr_html_()]
        texts += [trial._repr_html_() for trial in comparison.trials]
    finally:
        panel.close()
    assert any("&lt;img src=x" in text for text in texts)
    assert not [text for text in texts if "<img src=x" in text]
    assert "<img" in text_table(comparison.table)  # a terminal shows it as it is


@pytest.mark.parametrize("status", [MARK, "", "OK", None, 1, ["ok"]])
def test_a_status_is_one_of_its_words(folder, status):
    record = json.loads((folder / "run.json").read_text())
    record["trials"][1]["status"] = status
    assert not is_read(record, folder)
    with pytest.raises(QuantolabError, match="status must be"):
        explorer(run=folder)
