"""What earlier versions wrote opens: runs and saved folders as 0.1.0 left them (tests/data)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import quantolab as ql
from quantolab.run.journal import NOT_CHECKED
from quantolab.saved.folder import layer_words, open_saved

DATA = Path(__file__).parent / "data"
RUNS = {"run-finished": ["none", "int4 proj_out=none"], "run-cancelled": ["none", "int8"]}
SAVED = {
    "saved-int8": (ql.Recipe("int8"), "int8"),
    "saved-int4-skipping": (ql.Recipe("int4", ("transformer_blocks.0.attn.to_q",)), "int4"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_opens(name):
    comparison = ql.load_comparison(DATA / "0.1.0" / name)
    assert [trial.label for trial in comparison.trials] == RUNS[name]
    assert all(trial.ok for trial in comparison.trials)
    assert set(comparison.images) == {(label, "a red cat", 0) for label in RUNS[name]}
    written = json.loads((DATA / "0.1.0" / name / "run.json").read_text())["images"]
    for label in written:  # as scripts of that time ask for them
        assert comparison.images[label, "a red cat", 0].size == (32, 32)
    with pytest.raises(KeyError):
        comparison.images["int4, keeping nothing", "a red cat", 0]


def test_a_run_gives_the_table_that_it_gave():
    folder = DATA / "0.1.0" / "run-finished"
    table = ql.results_table(ql.load_comparison(folder))
    theirs = pd.read_csv(folder / "results.csv")
    assert list(table.columns)[: len(theirs.columns)] == list(theirs.columns)  # others follow
    numbers = theirs.select_dtypes("number").columns
    pd.testing.assert_frame_equal(
        table[numbers].astype(float), theirs[numbers].astype(float), check_names=False
    )
    assert table["recipe"].tolist() == [str(ql.Recipe.parse(text)) for text in theirs["recipe"]]
    for name in ("weights", "status", "device", "size", "torch", "quanto"):
        assert table[name].astype(str).tolist() == theirs[name].astype(str).tolist()


def test_a_run_that_was_ended_goes_on(pipeline_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(DATA / "0.1.0" / "run-cancelled", folder)
    before = json.loads((folder / "run.json").read_text())
    # It was made of the same pipeline, which lay elsewhere.
    before["workload"]["model"] = str(pipeline_folder)
    (folder / "run.json").write_text(json.dumps(before))
    comparison = ql.compare(
        pipeline_folder,
        ["none", "int8", "int2"],
        ["a red cat"],
        steps=2,
        repeats=2,
        size=(32, 32),
        out=folder,
        resume=True,
        watch=lambda progress: None,
    )
    assert [trial.status for trial in comparison.trials] == ["ok", "ok", "ok"]
    after = json.loads((folder / "run.json").read_text())
    for now, was in zip(after["trials"], before["trials"], strict=False):
        assert all(now[name] == was[name] for name in was if name not in ("timing", "quality"))
        for new, old in zip(now["quality"], was["quality"], strict=True):
            assert {name: new[name] for name in old} == old
        samples = was["timing"]["samples"]  # the reference is timed again, beside what is added
        assert now["timing"]["samples"][: len(samples)] == samples
    assert NOT_CHECKED in comparison.notes


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_model_loads(name):
    folder = DATA / "0.1.0" / name
    recipe, word = SAVED[name]
    module = ql.load_saved(folder, device="cpu")
    report = module.quantize_report
    assert report.recipe == recipe
    assert set(report.words) == {word}
    assert dict.fromkeys(report.quantized, word) == layer_words(open_saved(folder))
    assert {path for path, _ in report.kept} == set(recipe.skip)


@pytest.mark.parametrize("name", SAVED)
def test_saving_it_again_writes_the_same_weights(name, tmp_path):
    folder = DATA / "0.1.0" / name
    again = ql.save(ql.load_saved(folder, device="cpu"), tmp_path / "again")
    weights = "diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()
    ours, theirs = (json.loads((f / "quantolab.json").read_text()) for f in (again, folder))
    ours.pop("versions"), theirs.pop("versions")
    assert ours == theirs and list(ours) == list(theirs)
