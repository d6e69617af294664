"""Large runs: what is decoded on opening, what is looked at, and what goes to the page."""

import dataclasses
import io
import json

import pytest
from PIL import Image

import quantolab as ql
from quantolab import widgets
from quantolab.errors import BrokenModelError
from quantolab.recipes import Recipe
from quantolab.records import Comparison, PictureQuality, Trial, Workload
from quantolab.run import journal
from quantolab.run.stored_pictures import StoredPicture
from quantolab.widgets.sheet import FIRST


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 60 prompts by two recipes, its pictures of 200x100 pixels."""
    prompts = tuple(f"{n} foxes" for n in range(60))
    workload = Workload("demo", prompts, (0,), 1, None, (200, 100), "bfloat16", "cpu", 1)
    quality = tuple(PictureQuality(prompt, 0, 30.0, 0.9) for prompt in prompts)
    trials = (Trial(Recipe("none"), "ok"), Trial(Recipe("int8"), "ok", quality=quality))
    images = {
        (trial.label, prompt, 0): Image.new("RGB", (200, 100), (4 * n, shade, 90))
        for n, prompt in enumerate(prompts)
        for shade, trial in enumerate(trials)
    }
    folder = tmp_path_factory.mktemp("large") / "run"
    journal.save(Comparison(workload, trials, images), folder)
    return folder


def decoded(comparison):
    return sum(picture.is_decoded for picture in comparison.images.values())


def test_pictures_are_decoded_when_they_are_looked_at(run):
    comparison = ql.load_comparison(run)
    assert len(comparison.images) == 120 and decoded(comparison) == 0
    picture = comparison.images["int8", "7 foxes", 0]
    assert (picture.size, picture.mode, decoded(comparison)) == ((200, 100), "RGB", 0)
    assert picture.getpixel((3, 3)) == (28, 1, 90)
    assert decoded(comparison) == 1
    assert picture == ql.load_comparison(run).images["int8", "7 foxes", 0]
    assert picture.copy() == picture and type(picture.copy()) is Image.Image


def test_the_explorer_decodes_what_is_seen_first_and_then_what_is_asked_for(run):
    panel = widgets.explorer(run=run)
    assert len(panel.viewer._small) == FIRST
    first = decoded(panel.comparison)
    assert first <= FIRST + 2  # the test by eye shows a pair
    assert len(json.dumps(panel.viewer._sheet)) < 60_000
    theirs = panel.comparison.images  # of the last, those by eye may be one
    number = max(n for n in range(60) if not theirs["int8", f"{n} foxes", 0].is_decoded)
    key = panel.viewer._sheet["cells"][number][1]["key"]
    sent = []
    panel.viewer.send = lambda content, buffers=None: sent.append((content, buffers))
    ask = {"ask": "small", "keys": [key, "gone"], "side": 200}
    panel.viewer._handle_custom_msg(ask, [])
    panel.viewer._handle_custom_msg({**ask, "side": 90}, [])
    assert decoded(panel.comparison) == first + 1
    assert [content["key"] for content, _ in sent] == [key, key]
    sizes = [Image.open(io.BytesIO(buffers[0])).size for _, buffers in sent]
    assert sizes == [(200, 100), (160, 80)]
    panel.close()


def test_a_picture_that_is_cut_is_told_on_opening_and_one_that_is_spoilt_when_looked_at(
    run, tmp_path
):
    comparison = ql.load_comparison(run)
    journal.save(dataclasses.replace(comparison, folder=None), tmp_path / "copy")
    path = sorted((tmp_path / "copy" / "images" / "int8").glob("*.png"))[3]
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(BrokenModelError, match=f"{path.name}, which the run lists, can't be read"):
        ql.load_comparison(tmp_path / "copy")
    data = whole.index(b"IDAT") + 4
    path.write_bytes(whole[:data] + b"\0" * 9 + whole[data + 9 :])
    found = ql.load_comparison(tmp_path / "copy")
    with pytest.raises(BrokenModelError, match="can't be read"):
        found.images["int8", "3 foxes", 0].tobytes()


def test_a_stored_picture_is_what_pil_takes_for_one(run):
    picture = ql.load_comparison(run).images["none", "9 foxes", 0]
    assert isinstance(picture, StoredPicture)
    plain = Image.open(picture._place[1]).convert("RGB")
    assert picture == plain and plain == picture
    for same in (picture.convert("RGB"), picture.resize(picture.size), picture.crop()):
        assert same.tobytes() == plain.tobytes()


def test_a_comparison_of_many_recipes_shows_the_first(run):
    blocks = (Recipe("int8", layers={f"b.{n}": "none"}) for n in range(300))
    many = Comparison(ql.load_comparison(run).workload, tuple(Trial(r, "ok") for r in blocks))
    shown = many._repr_html_()
    assert shown.count("<tr") == 101
    assert "200 recipes more: results_table has all." in shown
