"""Places for what isn't finished: they go with what made them, killed or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantolab.errors import BrokenModelError, OutputError
from quantolab.files.whole import clear_leftovers, scratch_folder, workplace

KILLED = """
import os, signal, sys
from pathlib import Path
from quantolab.files.whole import scratch_folder, workplace
from quantolab.models.known import find_known, known_folder
with scratch_folder("verify") as place, workplace(Path(sys.argv[1])) as made:
    (place / "large").write_text("x")
    (made / "000.png").write_text("x")
    known_folder(find_known("FLUX.1-dev"))
    os.kill(os.getpid(), signal.{signal})
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of the test's own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def end_by(signal: str, run: Path) -> None:
    code = KILLED.format(signal=signal)
    subprocess.run([sys.executable, "-P", "-c", code, str(run)], check=False, capture_output=True)


def test_what_a_killed_process_left_is_cleared_away_by_the_next(temporary, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    end_by("SIGKILL", run)
    assert sorted(p.name.split("-")[1] for p in temporary.iterdir()) == ["known", "verify"]
    assert len([*run.iterdir()]) == 1
    with scratch_folder("plan") as place:
        assert [*temporary.iterdir()] == [place]
    with workplace(run) as made:
        assert [*run.iterdir()] == [made]
    end_by("SIGKILL", run)
    clear_leftovers(run)
    assert [*run.iterdir()] == []


def test_what_ends_by_itself_leaves_nothing(temporary, tmp_path):
    end_by("SIGINT", tmp_path)
    assert [*temporary.iterdir()] == []
    assert [*tmp_path.iterdir()] == [temporary]


def test_what_others_are_using_stays(temporary):
    strangers = [temporary / "quantolab-notes", temporary / "quantolab-plan-elsewhere-1-x"]
    for folder in strangers:
        folder.mkdir()
    with scratch_folder("run") as mine, scratch_folder("plan"):
        assert mine.is_dir()
    assert sorted(temporary.iterdir()) == sorted(strangers)


def test_errors_are_said_in_the_folder_s_name(tmp_path):
    said = "can't be written: No space left on device"
    with pytest.raises(OutputError, match=said), workplace(tmp_path):
        Path("/dev/full").write_text("x")
    with pytest.raises(BrokenModelError), workplace(tmp_path):
        raise BrokenModelError("not ours to reword")
    with pytest.raises(OutputError), workplace(tmp_path / "absent"):
        pass
    assert [*tmp_path.iterdir()] == []
