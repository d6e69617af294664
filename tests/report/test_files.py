"""The report on disk: complete files or none, and a clear sentence where it can't be written."""

import math
import os

import pytest
from PIL import Image

from quantolab.errors import OutputError
from quantolab.report import files
from quantolab.report.tables import read_table, results_table, text_table

NAMES = ["grid.png", "results.csv", "results.md", "results.parquet", "tradeoff.png"]


def listed(folder):
    """Return the names of everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_the_report_is_five_files(broken, tmp_path):
    written = files.write_report(broken, tmp_path / "deep" / "run")
    assert sorted(path.name for path in written) == NAMES == listed(tmp_path / "deep" / "run")
    assert all(path.stat().st_size for path in written)
    for name in ("grid.png", "tradeoff.png"):
        with Image.open(tmp_path / "deep" / "run" / name) as picture:
            picture.verify()


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_the_table_comes_back(broken, tmp_path, name):
    files.write_report(broken, tmp_path)
    table = results_table(broken)
    assert text_table(read_table(tmp_path / name)) == text_table(table)


def test_a_report_replaces_an_older_one(broken, make, tmp_path):
    files.write_report(broken, tmp_path)
    files.write_report(make(["none", "int4"], compiled=(), seeds=(0,)), tmp_path)
    assert list(read_table(tmp_path / "results.csv")["recipe"]) == ["none", "int4"]
    assert listed(tmp_path) == NAMES


@pytest.mark.parametrize("names", [NAMES, ["run.json"]], ids=["report", "run"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_never_followed(broken, tmp_path, names):
    """A stranger's folder may have links where files are going to be written."""
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    run.mkdir()
    links = [link for n in names for link in (n, f".{n}.partial", f".{n}.saving-x-1-0")]
    for link in links:
        (run / link).symlink_to(outside)
    if names == ["run.json"]:
        with pytest.raises(OutputError, match="is a link"):
            files.save_comparison(broken, run)
    else:
        files.write_report(broken, run)
        for name in names:
            assert not (run / name).is_symlink() and (run / name).stat().st_size > 4
    assert outside.read_text() == "mine" and not outside.is_symlink()


def test_a_comparison_in_which_everything_failed_is_written_too(make, tmp_path):
    failed = {"none": ("failed", "out of memory"), "int8": ("unsupported", "no such kernel")}
    files.write_report(make(["none", "int8"], compiled=(), failed=failed), tmp_path)
    assert listed(tmp_path) == NAMES
    assert math.isnan(read_table(tmp_path / "results.csv").loc[0, "psnr_db"])


@pytest.mark.parametrize("path", ["run", "run/deeper"])
def test_a_file_in_the_way(broken, tmp_path, path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match="results can't be written to"):
        files.write_report(broken, tmp_path / path)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(broken, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            files.write_report(broken, tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_saved_comparison_comes_back(broken, tmp_path):
    files.save_comparison(broken, tmp_path)
    back = files.load_comparison(tmp_path)
    assert back.workload == broken.workload
    assert back.trials == broken.trials
    assert back.images.keys() == broken.images.keys()
    assert all(back.images[k].tobytes() == broken.images[k].tobytes() for k in back.images)
