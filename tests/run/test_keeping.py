"""A run's folder afterwards: renamed, moved to the trash, brought back; never deleted."""

import os

import pytest

from quantolab.errors import ArgumentError, ModelNotFoundError, OutputError
from quantolab.report.listing import runs
from quantolab.run.journal import RUN_FILE, _lock
from quantolab.run.keeping import TRASH, discard_run, rename_run, restore_run


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "fox"
    (folder / "images" / "int8").mkdir(parents=True)
    (folder / RUN_FILE).write_text("{}")
    (folder / "images" / "int8" / "000.png").write_bytes(b"png")
    (folder / "notes.txt").write_text("my own")
    return folder


def test_renamed(run):
    before = contents(run)
    place = rename_run(run, " wolf ")
    assert place == run.parent / "wolf" and contents(place) == before and not run.exists()


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", ".hidden", "a/b", "../out", "a\\b", "a\0b", "a\nb", "x" * 201]
)
def test_what_is_no_name_is_refused(run, name):
    with pytest.raises(ArgumentError, match="can't be called"):
        rename_run(run, name)
    assert run.is_dir()


def test_nothing_is_replaced(run):
    (run.parent / "wolf").mkdir()  # which a plain rename would replace
    (run.parent / "dead").symlink_to("nowhere")
    for name in ("wolf", "dead", "fox"):
        with pytest.raises(ArgumentError, match="already"):
            rename_run(run, name)
    assert run.is_dir()


def test_to_the_trash_and_back(run):
    before = contents(run)
    gone = discard_run(run)
    assert gone.is_relative_to(run.parent / TRASH) and contents(gone) == before
    assert runs(run.parent).empty  # it isn't looked into
    again = run.parent / "fox"
    again.mkdir()
    with pytest.raises(ArgumentError, match="by now"):
        restore_run(gone)
    again.rmdir()
    assert restore_run(gone) == run and contents(run) == before
    assert not (run.parent / TRASH).exists()
    with pytest.raises(ModelNotFoundError):
        restore_run(gone)


def test_two_of_one_name_in_the_trash(run):
    first = discard_run(run)
    run.mkdir()
    (run / RUN_FILE).write_text("{}")
    second = discard_run(run)
    assert first.is_dir() and second.is_dir() and first != second


def test_a_strangers_links_are_refused(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.parent / TRASH).symlink_to(outside)
    with pytest.raises(OutputError, match="link"):
        discard_run(run)
    assert run.is_dir() and not any(outside.iterdir())
    (run.parent / "alias").symlink_to(run)
    with pytest.raises(OutputError, match="link"):
        rename_run(run.parent / "alias", "wolf")
    (run / "images" / "int4").symlink_to(outside)
    with pytest.raises(OutputError, match="link"):
        rename_run(run, "wolf")
    assert run.is_dir()


def test_what_holds_no_run_stays(run, monkeypatch):
    with pytest.raises(ModelNotFoundError, match="holds no run"):
        discard_run(run.parent)
    monkeypatch.chdir(run / "images")
    with pytest.raises(ArgumentError, match="current folder"):
        discard_run(run)


def test_a_run_at_work_stays(run):
    handle = _lock(run)
    try:
        with pytest.raises(ArgumentError, match="right now"):
            discard_run(run)
    finally:
        os.close(handle)
    assert discard_run(run).is_dir()
