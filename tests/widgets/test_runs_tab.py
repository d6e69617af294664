"""The explorer's list of runs, driven by program."""

import json

import pytest
from PIL import Image

from quantolab.errors import ArgumentError
from quantolab.run import journal
from quantolab.widgets import explorer


@pytest.fixture
def panel(make, tmp_path, monkeypatch):
    """Return an explorer in a folder with two runs and one that can't be read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    journal.save(make(("none", "int8", "int4"), compiled=(), size=(32, 32)), "runs/fox")
    journal.save(make(("none", "int8"), compiled=(), seeds=(1,), size=(32, 32)), "runs/dog")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("[]")
    made = explorer("demo")
    yield made
    made.close()


def names(panel):
    return sorted(row["cells"][0] for row in panel.runs.list.content["rows"])


def test_runs_are_listed_when_they_are_looked_at(panel):
    assert panel.tabs.titles == ("Runs",) and panel.runs.found == ()
    panel.tabs.selected_index = 0
    assert panel.runs.wait(60)
    assert names(panel) == ["bad", "runs/dog", "runs/fox"]
    [bad] = [row for row in panel.runs.list.content["rows"] if row["cells"][0] == "bad"]
    assert "JSON list" in bad["reason"]
    panel.runs.look("runs", wait=True)
    assert names(panel) == ["dog", "fox"]
    panel.runs.look("nowhere", wait=True)
    assert panel.runs.found == () and "no folder" in panel.runs.said.value


def test_two_side_by_side(panel):
    panel.runs.look("runs", wait=True)
    assert panel.runs.buttons["beside"].disabled
    panel.runs.choose("fox", "dog")
    panel.runs.buttons["beside"].click()
    assert panel.runs.wait(60)
    sheet = panel.runs.viewer._sheet
    assert [column["label"] for column in sheet["columns"]] == [
        "none · fox", "none · dog", "int8 · fox", "int8 · dog", "int4 · fox",
    ]  # fmt: skip
    assert [row["seed"] for row in sheet["rows"]] == ["0", "1"] * 2
    assert panel.runs.table.sheet.content["headers"][:2] == ["run", "recipe"]
    panel.runs.table.sort("run")
    assert "Seeds: 2 in fox, 1 in dog" in panel.runs.told.value
    viewer = panel.runs.viewer
    viewer.pair = ("none · fox", "int8 · dog")
    viewer.show_worst()
    assert viewer.place[1] == 1 and viewer.figures().psnr_db > 20
    viewer.view = "errors"  # which several references have no one answer to
    assert viewer._sheet["ticks"] == []
    assert panel.comparison is None  # what the other tabs show is let be


def test_pictures_of_other_sizes_stand_side_by_side(panel, make):
    journal.save(make(("none",), compiled=(), size=(64, 32)), "runs/wide")
    panel.runs.look("runs", wait=True)
    panel.runs.choose("fox", "wide")
    side = panel.runs.put_side_by_side()
    assert "Size: 32x32 in fox, 64x32 in wide." in side.differences
    assert {picture.size for picture in side.images.values()} == {(32, 32), (64, 32)}
    assert isinstance(Image.open(__import__("io").BytesIO(side.grid()._repr_png_())), Image.Image)


def test_opened_renamed_discarded_and_brought_back(panel, tmp_path):
    panel.runs.look("runs", wait=True)
    panel.runs.choose("fox")
    panel.runs.buttons["open"].click()
    assert panel.folder == str(tmp_path / "runs" / "fox") and len(panel.tabs.children) == 6
    assert panel.tabs.selected_index == 0 and panel.form.choice.prompts is not None
    panel.runs.name.value = "wolf"
    panel.runs.buttons["rename"].click()
    assert names(panel) == ["dog", "wolf"]
    assert panel.folder == panel.comparison.folder == str(tmp_path / "runs" / "wolf")
    assert panel.runs.list.chosen == [panel.runs.found[panel.runs.found.index("runs/wolf")]]
    panel.runs.name.value = "dog"
    panel.runs.buttons["rename"].click()
    assert "already" in panel.runs.said.value
    panel.runs.buttons["discard"].click()
    assert names(panel) == ["dog"] and panel.folder is None
    assert "in the trash" in panel.results.value and len(panel.comparison.trials) == 3
    panel.runs.buttons["undo"].click()
    assert names(panel) == ["dog", "wolf"]
    with pytest.raises(ArgumentError, match="moved to the trash"):
        panel.runs.undo()


def test_only_what_is_listed_is_opened(panel, tmp_path):
    panel.runs.look("runs", wait=True)
    panel.runs.list._handle_custom_msg({"open": str(tmp_path / "bad")}, [])
    panel.runs.list._handle_custom_msg({"open": "runs/dog"}, [])
    assert panel.folder == str(tmp_path / "runs" / "dog")


def test_recipes_are_offered_to_a_run_that_lacks_them(panel):
    panel.open_run("runs/fox")
    offered = panel.add_button.layout
    assert offered.display == "none"
    panel.set(recipes=["none", "int2"])
    assert offered.display is None and "int2" in panel.add_button.tooltip
    panel.set(steps=3)  # then it would be another run
    assert offered.display == "none"
    with pytest.raises(ArgumentError, match="no recipe that could be added"):
        panel.add()


# --- which recipe to take ------------------------------------------------------------------------


def test_advice_marks_its_row_and_follows_the_target(panel):
    assert panel.advice.layout.display == "none"
    panel.open_run("runs/fox")
    assert panel.advice.layout.display is None
    assert panel.advice.choice.recipe == "int8" and panel.shown_table.sheet.marked == 1
    assert "int8: 0.52x the bytes" in panel.advice.sentence.value
    assert "int8: 0.52x the bytes" in panel.static_html()
    panel.advice.memory.value = "412.1MB"
    assert panel.advice.choice.recipe == "int4" and panel.shown_table.sheet.marked == 2
    panel.advice.decibels.value = "40 dB"
    assert panel.advice.choice.recipe is None and panel.shown_table.sheet.marked == -1
    assert panel.advice.save_button.disabled and panel.advice.script_button.disabled
    panel.advice.memory.value = "<b>much"
    assert "&lt;b&gt;much" in panel.advice.sentence.value and panel.advice.choice is None
    panel.advice.memory.value = panel.advice.decibels.value = ""
    panel.advice.fastest.value = True  # unquantized: there is nothing to save
    assert panel.advice.choice.recipe == "none"
    assert panel.advice.save_button.disabled and not panel.advice.script_button.disabled


@pytest.mark.long
def test_what_is_advised_is_saved_and_its_script_shown(panel, tmp_path):
    panel.open_run("runs/fox")
    panel.advice.save(wait=True)
    assert "demo-int8" in panel.advice.said.value, panel.advice.said.value
    report = json.loads((tmp_path / "demo-int8" / "quantolab.json").read_text())
    assert report["recipe"]["weights"] == "int8"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("to keep")
    panel.advice.save("mine", wait=True)
    assert "role='alert'" in panel.advice.said.value
    assert (tmp_path / "mine" / "letter.txt").read_text() == "to keep"
    panel.advice.script_button.click()
    assert panel.take_away.wait(120) and panel.tabs.selected_index == 4
    assert "quantize(" in panel.take_away.script.code
