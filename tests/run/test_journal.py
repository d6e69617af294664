"""The run folder: whole files, one writer, resumable."""

from __future__ import annotations

import json
import multiprocessing
import struct

import numpy as np
import pytest
from PIL import Image

from quantolab.errors import (
    ArgumentError,
    BrokenModelError,
    Cancelled,
    ModelNotFoundError,
    OutputError,
)
from quantolab.recipes import Recipe
from quantolab.records import Comparison, Timing, Trial, Workload
from quantolab.run import journal
from quantolab.run.journal import Journal

WORKLOAD = Workload("demo", ("a cat", "a dog"), (0, 1), 3, None, (32, 16), "bfloat16", "cpu", 2)
ASKED = (Trial(Recipe("none")), Trial(Recipe("int8")))


def finished(weights, status="ok"):
    return Trial(Recipe(weights), status, None if status == "ok" else "why", timing=Timing((1.0,)))


def pictures(folder):
    folder.mkdir()
    for number in range(4):
        pixels = np.full((16, 32, 3), 40 * number, dtype="uint8")
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def test_a_trial_is_kept_with_its_pictures_and_read_back(tmp_path):
    book = Journal(tmp_path / "run", WORKLOAD, ASKED)
    book.add(finished("none"), pictures(tmp_path / "made"), 2.5)
    book.close()
    back = journal.read(tmp_path / "run")
    assert (back.workload, back.trials, back.wall_seconds) == (WORKLOAD, (finished("none"),), 2.5)
    assert sorted(back.images) == sorted(("none", p, s) for p, s in WORKLOAD.pairs)
    assert back.images["none", "a dog", 1].getpixel((0, 0)) == (120, 120, 120)
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (values["finished"], values["recipes"]) == (False, ["none", "int8"])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["images", "run.json"]


def test_saving_a_comparison_and_reading_it_gives_the_same(tmp_path):
    book = Journal(tmp_path / "run", WORKLOAD, ASKED)
    book.add(finished("none"), pictures(tmp_path / "made"), 2.5)
    book.close()
    comparison = journal.read(tmp_path / "run")
    journal.save(comparison, tmp_path / "copy")
    again = journal.read(tmp_path / "copy")
    assert again.trials == comparison.trials
    assert all(
        again.images[key].tobytes() == picture.tobytes()
        for key, picture in comparison.images.items()
    )


def test_resume_keeps_what_is_done_and_tries_failed_ones_again(tmp_path):
    asked = (*ASKED, Trial(Recipe("int4"), "failed"))
    book = Journal(tmp_path / "run", WORKLOAD, asked)
    book.add(finished("none"), pictures(tmp_path / "made"), 1.0)
    book.add(finished("int8", "failed"), None, 2.0)
    book.add(finished("int4", "unsupported"), None, 3.0)
    book.close()
    book = Journal(tmp_path / "run", WORKLOAD, asked, resume=True)
    assert [book.done(w) is not None for w in ("none", "int8", "int4")] == [True, False, True]
    assert book.write(0.5).wall_seconds == 3.5
    book.close()


def test_a_trial_whose_pictures_are_gone_is_done_again(tmp_path):
    book = Journal(tmp_path / "run", WORKLOAD, ASKED)
    book.add(finished("none"), pictures(tmp_path / "made"), 1.0)
    book.close()
    next((tmp_path / "run" / "images" / "none").iterdir()).unlink()
    book = Journal(tmp_path / "run", WORKLOAD, ASKED, resume=True)
    assert book.done("none") is None
    book.close()


def test_a_run_is_never_overwritten_or_mixed(tmp_path):
    Journal(tmp_path, WORKLOAD, ASKED).close()
    journal.write_run(tmp_path, Comparison(WORKLOAD, ()))
    with pytest.raises(ArgumentError, match="already holds a comparison; add --resume"):
        Journal(tmp_path, WORKLOAD, ASKED)
    other = Workload("demo", ("a cat",), (0,), 9, None, (32, 16), "bfloat16", "cpu", 2)
    with pytest.raises(ArgumentError, match="steps was 3, now 9"):
        Journal(tmp_path, other, ASKED, resume=True)


def test_a_run_is_one_from_its_first_moment_and_nothing_if_it_is_refused(tmp_path):
    run = tmp_path / "runs" / "fox"
    with pytest.raises(ArgumentError, match="no"), journal.begun(run, resume=False):
        assert journal.is_begun(run)
        raise ArgumentError("no")
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    (run / "mine").write_text("x")
    with pytest.raises(ValueError, match="a bug"), journal.begun(run, resume=False):
        raise ValueError("a bug")
    assert [p.name for p in run.iterdir()] == ["mine"]
    with journal.begun(run, resume=False):
        book = Journal(run, WORKLOAD, ASKED)
        book.write(1.0)
        book.close()
    assert sorted(p.name for p in run.iterdir()) == ["mine", "run.json"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, Cancelled])
def test_what_was_cut_before_anything_was_written_is_resumed(tmp_path, end):
    with pytest.raises(end), journal.begun(tmp_path / "fox", resume=False):
        raise end
    with journal.begun(tmp_path / "fox", resume=True):
        Journal(tmp_path / "fox", WORKLOAD, ASKED, resume=True).close()


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("fxo", "did you mean 'fox'?"),
        ("Fox2", "did you mean 'fox'?"),
        ("runz/demo-1", "did you mean 'runs'?"),
        ("runs/demo-11", "did you mean 'demo-1'?"),
        ("runs", "runs/demo-1'?"),
        ("notes", ""),  # a folder that is near, and no run
        ("qqqqqqq", ""),
    ],
)
def test_resuming_what_is_no_run_is_refused_with_the_nearest(tmp_path, asked, hint):
    for name in ("fox", "runs/demo-1"):
        with journal.begun(tmp_path / name, resume=False):
            Journal(tmp_path / name, WORKLOAD, ASKED).write(1.0)
    (tmp_path / "note").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(ArgumentError, match="holds no run to go on with; without --resume") as said,
        journal.begun(tmp_path / asked, resume=True),
    ):
        pass
    assert str(said.value).partition("begins there")[2].endswith(hint)
    assert bool(hint) == ("did you mean" in str(said.value))
    assert sorted(tmp_path.rglob("*")) == before


def hold(folder, held, done):
    book = Journal(folder, WORKLOAD, ASKED)
    held.set()
    done.wait(30)
    book.close()


def test_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, done))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(OutputError, match="another run is writing"):
            Journal(tmp_path, WORKLOAD, ASKED)
    finally:
        done.set()
        other.join()
    Journal(tmp_path, WORKLOAD, ASKED).close()


def test_unusable_folders_say_why(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="can't be written"):
        journal.usable_folder(tmp_path / "file" / "run")
    with pytest.raises(ModelNotFoundError, match=r"it has no run\.json"):
        journal.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": "x"}', '{"format": 99}', '{"format": 1, "workload": 3}'],
)
def test_a_broken_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BrokenModelError):
        journal.read(tmp_path)


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    journal.write_whole(target, "old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OutputError, match="disk full"):
        journal.write_whole(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", [".lock", ".work", "images", "run.json", "images/none"])
def test_links_in_a_run_folder_are_not_followed(tmp_path, name):
    """A run folder may be a stranger's, made to have somebody else's files overwritten."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    target = outside / "precious" if name in (".lock", "run.json") else outside
    (run / name).symlink_to(target)
    with pytest.raises(OutputError, match="is a link"):
        Journal(run, WORKLOAD, ASKED, resume=True)
    assert [p.name for p in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "mine"


def with_a_picture(folder):
    book = Journal(folder, WORKLOAD, ASKED)
    book.add(finished("none"), pictures(folder.parent / "made"), 2.5)
    book.close()
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seeds", ["/../../../secret", 1]),
        ("seeds", ["0", "1"]),
        ("prompts", ["../../../secret", "a dog"]),
        ("prompts", ["/" + "../" * 20 + "secret", "a dog"]),
    ],
)
def test_nothing_in_a_record_leads_out_of_its_folder(tmp_path, place, value):
    record = with_a_picture(tmp_path / "runs" / "run")
    Image.new("RGB", (32, 16), "red").save(tmp_path / "secret.png")
    record["workload"][place] = value
    (tmp_path / "runs" / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(BrokenModelError, match=r"must be a whole number|isn't there"):
        journal.read(tmp_path / "runs" / "run")


def test_where_pictures_lie_is_not_taken_from_the_record(tmp_path):
    record = with_a_picture(tmp_path / "run")
    record["images"] = {"none": ["../../secret.png"] * 4}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert len(journal.read(tmp_path / "run").images) == 4
    for weights in ("../../secret", "int8/../../secret", "none\u0000"):
        record["trials"][0]["recipe"]["weights"] = weights
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(BrokenModelError):
            journal.read(tmp_path / "run")


def test_pictures_behind_links_are_not_read(tmp_path):
    book = Journal(tmp_path / "run", WORKLOAD, ASKED)
    book.add(finished("none"), pictures(tmp_path / "made"), 2.5)
    book.close()
    picture = next((tmp_path / "run" / "images" / "none").iterdir())
    secret = tmp_path / "secret.png"
    picture.rename(secret)
    picture.symlink_to(secret)
    with pytest.raises(BrokenModelError, match="leads out of its folder"):
        journal.read(tmp_path / "run")


@pytest.mark.parametrize("size", [(0, 16), (32, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused_on_opening(tmp_path, size):
    with_a_picture(tmp_path / "run")
    picture = next((tmp_path / "run" / "images" / "none").iterdir())
    data = picture.read_bytes()
    picture.write_bytes(data[:16] + struct.pack(">II", *size) + data[24:])
    with pytest.raises(BrokenModelError, match="which the run lists, can't be read"):
        journal.read(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "<img src=x onerror=alert(1)>"}, r"trials\[0\]\.status must be one of"),
        ({"weight_bytes": "many"}, r"trials\[0\]\.weight_bytes must be a whole number"),
        ({"recipe": {"weights": "int8", "skip": 3, "components": []}}, r"skip must be a list"),
        ({"timing": [1.0]}, r"timing must be an object"),
    ],
)
def test_a_run_of_wrong_types_is_refused(tmp_path, change, message):
    book = Journal(tmp_path / "run", WORKLOAD, ASKED)
    book.add(finished("none"), pictures(tmp_path / "made"), 2.5)
    book.close()
    path = tmp_path / "run" / "run.json"
    values = json.loads(path.read_text())
    values["trials"][0] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(BrokenModelError, match=message):
        journal.read_run(tmp_path / "run")


def test_a_folder_that_a_killed_run_left_empty_is_gone_on_with(tmp_path):
    (tmp_path / "run").mkdir()
    journal.check_folder(tmp_path / "run", resume=True)
    (tmp_path / "run" / "letter.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds no run to go on with"):
        journal.check_folder(tmp_path / "run", resume=True)
