"""The list of runs: what lies under a folder, in whatever state, and nothing outside it."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

import quantolab as ql
from quantolab.cli import main
from quantolab.report.listing import LISTED, runs, runs_text
from quantolab.run import journal
from quantolab.run.journal import RUN_FILE


@pytest.fixture
def place(comparison, tmp_path):
    """A folder with runs in four states, the latest last by name."""
    finished = journal.save(comparison, tmp_path / "place" / "b" / "finished")
    for number, name in enumerate(("cut", "damaged", "busy")):
        folder = finished.parents[1] / name
        shutil.copytree(finished, folder)
        os.utime(folder / RUN_FILE, (1_000_000 + number,) * 2)
    cut = json.loads((finished.parents[1] / "cut" / RUN_FILE).read_text())
    cut["trials"] = cut["trials"][:1]
    (finished.parents[1] / "cut" / RUN_FILE).write_text(json.dumps(cut))
    (finished.parents[1] / "damaged" / RUN_FILE).write_text('{"format": "<b>"}')
    os.utime(finished.parents[1] / "damaged" / RUN_FILE, (1_000_001,) * 2)
    os.utime(finished.parents[1] / "cut" / RUN_FILE, (1_000_000,) * 2)
    return finished.parents[1]


def test_every_run_is_a_row_whatever_its_state(place, comparison):
    with (place / "busy" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = runs(place)
    assert list(table.columns) == list(LISTED)
    assert [(Path(row.run).name, row.state) for row in table.itertuples()] == [
        ("finished", "finished"), ("busy", "running"), ("damaged", "unreadable"),
        ("cut", "unfinished"),
    ]  # fmt: skip
    first = table.iloc[0]
    assert first["model"] == comparison.workload.model
    assert first["recipes"] == ", ".join(trial.label for trial in comparison.trials)
    assert first["ok"] + first["failed"] == len(comparison.trials)
    assert ql.load_comparison(first["run"]).trials == comparison.trials
    damaged = table.iloc[2]
    assert "is no record of a comparison" in damaged["reason"]
    assert pd.isna(damaged["model"]) and pd.isna(damaged["ok"])
    assert table.iloc[3]["ok"] == 1


def test_a_lock_that_was_left_is_no_run(place):
    (place / "busy" / ".lock").touch()
    assert "running" not in set(runs(place)["state"])


def test_links_hidden_and_deep_folders_are_left_alone(place, tmp_path):
    (tmp_path / "elsewhere").symlink_to(place, target_is_directory=True)
    shutil.copytree(place / "cut", tmp_path / "alone")
    (tmp_path / "alone" / RUN_FILE).unlink()
    (tmp_path / "alone" / RUN_FILE).symlink_to(place / "cut" / RUN_FILE)
    shutil.copytree(place / "cut", tmp_path / ".hidden" / "cut")
    shutil.copytree(place / "cut", tmp_path / "1/2/3/4/5/6/cut")
    found = runs(tmp_path)["run"]
    assert len(found) == 4 and all(name.startswith(str(place)) for name in found)


def test_a_run_itself_and_none(place, tmp_path, monkeypatch):
    assert len(runs(place / "cut")) == 1
    monkeypatch.chdir(place)
    assert len(runs()) == 4
    (tmp_path / "empty").mkdir()
    none = runs(tmp_path / "empty")
    assert list(none.columns) == list(LISTED) and len(none) == 0
    assert runs_text(none).startswith("No runs here")
    with pytest.raises(ql.QuantolabError, match="no folder 'nowhere'"):
        runs("nowhere")


def test_the_command(place, tmp_path, capsys):
    assert main(["runs", str(place), "--csv", str(tmp_path / "runs.csv")]) == 0
    said = capsys.readouterr().out.splitlines()
    headings = ["run", "model", "recipes", "machine", "when", "(UTC)", "state", "took"]
    assert said[0].split() == headings
    assert "finished" in said[2] and said[2].split()[0].endswith("finished")
    assert said[-2].startswith(f"{place}/damaged can't be read: ")
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 4
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
