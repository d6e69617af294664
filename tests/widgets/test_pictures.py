"""The picture viewer without a browser: what it sends, what it keeps, what it answers."""

import base64
import dataclasses
import io
import re
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from quantolab.errors import ArgumentError, BrokenModelError
from quantolab.measure.quality import difference_map, flip_map, picture_quality
from quantolab.recipes import Recipe
from quantolab.records import Comparison, Trial, Workload
from quantolab.report import tables
from quantolab.report.difference_heat import heat_picture, heat_scale
from quantolab.report.error_maps import error_maps
from quantolab.report.grid import grid_content
from quantolab.report.tables import results_table
from quantolab.widgets import pictures
from quantolab.widgets import sheet as sheets
from quantolab.widgets.pictures import PictureViewer
from quantolab.widgets.sheet import small_pictures, small_size
from quantolab.widgets.tabling import table_html

RED, YELLOW = "a red circle above a blue square", "two yellow stars on a green field"


def asked(viewer, **question):
    """Return what the browser would get for a question: (content, buffers) of each message."""
    sent = []
    viewer.send = lambda content, buffers=None: sent.append((content, buffers))
    viewer._handle_custom_msg(question, [])
    viewer._apart.submit(int).result()  # what is answered apart has been
    del viewer.send
    return sent


def test_small_pictures_need_not_wait_for_a_comparison(comparison, monkeypatch):
    viewer = PictureViewer(comparison)
    go_on, sent = threading.Event(), []
    monkeypatch.setattr(pictures, "picture_quality", lambda *two: go_on.wait(60) and (1.0, 1.0))
    viewer.send = lambda content, buffers=None: sent.append(content["answer"])
    keys = [cell["key"] for cell in viewer._sheet["cells"][0][:3]]
    viewer._handle_custom_msg({"ask": "pair", "left": keys[0], "right": keys[1]}, [])
    viewer._handle_custom_msg({"ask": "small", "keys": [*keys, "gone"], "side": 320}, [])
    assert sent == ["small"] * 3
    go_on.set()
    viewer._apart.submit(int).result()
    assert sent == ["small"] * 3 + ["pair"]


def test_a_picture_that_can_not_be_read_does_not_keep_others_back(comparison, monkeypatch):
    def breaks(picture, sides):
        if picture is broken:
            raise BrokenModelError("gone")
        return small_pictures(picture, sides)

    broken = comparison.images["none", *comparison.workload.pairs[0]]
    monkeypatch.setattr(sheets, "small_pictures", breaks)
    viewer = PictureViewer(comparison)
    keys = [cell["key"] for cell in viewer._sheet["cells"][0][:3]]
    assert set(keys) - {*viewer._small} == {keys[0]}
    said = [content["answer"] for content, _ in asked(viewer, ask="small", keys=keys, side=160)]
    assert said == ["small", "small", "error"]


def partly(comparison, finished):
    """Return the comparison as it was after the first trials had ended."""
    trials = comparison.trials[:finished]
    labels = {trial.label for trial in trials}
    images = {key: picture for key, picture in comparison.images.items() if key[0] in labels}
    return dataclasses.replace(comparison, trials=trials, images=images)


# --- what is shown ------------------------------------------------------------------------------


def test_every_word_is_the_image_grids(comparison):
    content = grid_content(comparison)
    viewer = PictureViewer(comparison)
    shown = viewer._sheet
    assert shown["footer"] == content.footer
    assert [
        (c["label"], c["name"], c["rest"], tuple(c["facts"]), c["reason"]) for c in shown["columns"]
    ] == [dataclasses.astuple(column)[:5] for column in content.columns]
    assert [(r["prompt"], r["seed"]) for r in shown["rows"]] == [
        (RED, "0"), (RED, "1"), (YELLOW, "0"), (YELLOW, "1"),
    ]  # fmt: skip
    captions = {
        (column["label"], row["prompt"], int(row["seed"])): cell["caption"]
        for row, cells in zip(shown["rows"], shown["cells"], strict=True)
        for column, cell in zip(shown["columns"], cells, strict=True)
        if cell["caption"]
    }
    assert captions == content.captions


def test_small_pictures_are_exact_and_big_ones_are_reduced(make):
    for size, expected in (((128, 128), (128, 128)), ((640, 320), (160, 80))):
        found = make(["none", "int4"], compiled=(), size=size)
        viewer = PictureViewer(found)
        assert len(viewer._small) == 8
        key = viewer._sheet["cells"][1][1]["key"]
        small = Image.open(io.BytesIO(viewer._small[key]))
        assert (small.format, small.size) == ("WEBP", expected)
        if size == expected:
            whole = np.asarray(found.images["int4", RED, 1])
            np.testing.assert_array_equal(np.asarray(small.convert("RGB")), whole)
        else:
            assert len(viewer._small[key]) < 10_000
    assert viewer._sheet["size"] == [640, 320]


def test_the_size_that_a_page_asks_for_is_made_when_a_picture_is_decoded(make, monkeypatch):
    found = make(["none", "int4"], compiled=(), size=(1024, 512))
    viewer = PictureViewer(found)
    keys = [cell["key"] for row in viewer._sheet["cells"] for cell in row]
    decoded = []
    monkeypatch.setattr(sheets, "small_pictures",
                        lambda *given: decoded.append(1) or small_pictures(*given))  # fmt: skip

    def sizes(side):
        return {Image.open(io.BytesIO(file)).size
                for _, (file,) in asked(viewer, ask="small", keys=keys, side=side)}  # fmt: skip

    assert sizes(320) == {(320, 160)}
    assert decoded == []
    assert sizes(640) == {(640, 320)}
    assert len(decoded) == 8
    viewer.update(make(["none", "int4"], compiled=(), size=(1024, 512), prompts=("another",)))
    keys = [cell["key"] for row in viewer._sheet["cells"] for cell in row]
    decoded.clear()
    assert sizes(640) == {(640, 320)}
    assert decoded == []


def test_equal_pictures_are_sent_once(make):
    found = make(["none", "int8"], compiled=(), seeds=(0,))
    same = {("int8", p, s): found.images["none", p, s].copy() for p, s in found.workload.pairs}
    viewer = PictureViewer(dataclasses.replace(found, images=found.images | same))
    assert len(viewer._small) == 2


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (160, 160)), ((128, 96), (128, 96)), ((1024, 512), (160, 80)),
        ((1, 900), (1, 160)),
    ],
)  # fmt: skip
def test_small_pictures_are_enlarged_whole_times(size, shown):
    assert small_size(size) == shown


def test_nothing_to_show(comparison):
    viewer = PictureViewer()
    assert (viewer.pair, viewer._sheet, viewer.static_html()) == (("", ""), {}, "")
    assert viewer.figures() is None
    with pytest.raises(ArgumentError, match="there is no comparison to look at"):
        viewer.show_worst()
    viewer.update(partly(comparison, 0))
    assert viewer._sheet["columns"] == []
    assert "ql-grid" in viewer._dom_classes


# --- while trials arrive ------------------------------------------------------------------------


def test_finished_trials_appear_and_the_rest_is_waited_for(comparison):
    labels = [trial.label for trial in comparison.trials]
    viewer = PictureViewer()
    order = []
    for finished in range(len(labels) + 1):
        viewer.update(partly(comparison, finished), waiting=comparison.trials[finished:])
        order.append([column["label"] for column in viewer._sheet["columns"]])
        notes = [cell["note"] for cell in viewer._sheet["cells"][0]]
        failed = finished == len(labels)
        assert notes == [""] * min(finished, 5) + ["waiting"] * (6 - finished - failed) + (
            ["no picture"] if finished == 6 else []
        )
    # A column stays where it is from the first moment on.
    assert order == [["none", "float8", "int8", "int8 compiled", "int4", "int2"]] * 7


def test_columns_keep_the_grids_order_whatever_order_trials_run_in(make):
    skipping = Recipe("int8", ("proj_out",))
    found = make(["int2", "none", "int8", skipping], compiled=("int8",), seeds=(0,))
    order = ("none", "int8", "int8 compiled", str(skipping), f"{skipping} compiled", "int2")
    for finished in range(7):
        viewer = PictureViewer()
        viewer.update(partly(found, finished), waiting=found.trials[finished:])
        assert viewer._words.labels == order


def test_pictures_of_a_trial_under_way_are_shown(comparison):
    key = ("float8", RED, 0)
    early = partly(comparison, 1)
    early = dataclasses.replace(early, images=early.images | {key: comparison.images[key]})
    viewer = PictureViewer()
    viewer.update(early, waiting=comparison.trials[1:2])
    column = [row[1] for row in viewer._sheet["cells"]]
    assert [bool(cell["key"]) for cell in column] == [True, False, False, False]
    assert [cell["note"] for cell in column] == ["", "waiting", "waiting", "waiting"]


def test_choices_survive_updates(comparison):
    viewer = PictureViewer()
    viewer.update(partly(comparison, 3), waiting=comparison.trials[3:])
    viewer.mode, viewer.pair, viewer.place = "compare", ("float8", "int8"), (YELLOW, 1)
    viewer.position = 0.25
    for finished in (4, 5, 6):
        viewer.update(partly(comparison, finished), waiting=comparison.trials[finished:])
    assert (viewer.mode, viewer.pair, viewer.place, viewer.position, viewer._row) == (
        "compare", ("float8", "int8"), (YELLOW, 1), 0.25, 3,
    )  # fmt: skip


def test_without_a_choice_the_ends_of_the_range_are_compared(comparison, make):
    viewer = PictureViewer()
    viewer.update(partly(comparison, 1), waiting=comparison.trials[1:])
    assert viewer.pair == ("none", "int2")
    viewer.update(comparison)  # int2 has failed
    assert viewer.pair == ("none", "int4")
    viewer.update(make(["none", "float8"], compiled=(), prompts=("another",), seeds=(7,)))
    assert (viewer.pair, viewer.place) == (("none", "float8"), ("another", 7))


def test_a_picture_is_read_and_reduced_once(comparison, monkeypatch):
    done = []
    for name in ("picture_key", "small_pictures"):
        was = getattr(sheets, name)
        monkeypatch.setattr(
            sheets, name, lambda *p, was=was, name=name: done.append(name) or was(*p)
        )
    viewer = PictureViewer(partly(comparison, 2))
    viewer.update(partly(comparison, 3))
    viewer.update(comparison)
    assert done.count("picture_key") == done.count("small_pictures") == 20


# --- choices ------------------------------------------------------------------------------------


def test_wrong_choices(comparison):
    viewer = PictureViewer(comparison)
    with pytest.raises(ArgumentError, match="recipe 'float9' is not known"):
        viewer.pair = ("float9", "int4")
    with pytest.raises(ArgumentError, match="there is no picture of"):
        viewer.place = (RED, 5)
    assert (viewer.pair, viewer.place) == (("none", "int4"), (RED, 0))


def test_the_row_chosen_in_the_browser_is_the_place(make):
    seeds = (0, 2**63 - 1)  # more digits than JavaScript's numbers have
    viewer = PictureViewer(make(["none", "int4"], compiled=(), seeds=seeds))
    viewer.set_state({"_row": 3})
    assert viewer.place == (YELLOW, 2**63 - 1)
    viewer.place = (RED, 2**63 - 1)
    assert viewer._row == 1
    viewer.set_state({"pair": ["int4", "none"]})
    assert viewer.pair == ("int4", "none")


def test_the_worst_place_is_the_tables(comparison):
    viewer = PictureViewer(comparison)
    for label in ("float8", "int4"):
        trial = next(trial for trial in comparison.trials if trial.label == label)
        worst = min(trial.quality, key=lambda q: q.psnr_db)
        viewer.pair = ("none", label)
        assert asked(viewer, ask="worst") == []
        assert viewer.place == (worst.prompt, worst.seed)


# --- what the browser asks for ------------------------------------------------------------------


def test_a_whole_picture_is_sent_without_loss(make):
    found = make(["none", "int4"], compiled=(), size=(400, 300))
    viewer = PictureViewer(found)
    question = {"ask": "picture", "key": viewer._sheet["cells"][2][1]["key"]}
    [(content, [data])] = asked(viewer, **question)
    assert content == {"answer": "picture", "to": question}
    whole = np.asarray(found.images["int4", YELLOW, 0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), whole)
    assert asked(viewer, ask="picture", key="replaced meanwhile") == []


def test_the_difference_of_a_pair(comparison):
    viewer = PictureViewer(comparison)
    viewer.pair, viewer.place = ("float8", "int4"), (YELLOW, 1)
    pictures = [comparison.images[label, YELLOW, 1] for label in viewer.pair]
    psnr_db, ssim = picture_quality(*pictures)
    levels = difference_map(*pictures)
    figures = viewer.figures()
    assert (figures.psnr_db, figures.ssim, figures.scale) == (psnr_db, ssim, heat_scale(levels))
    cells = viewer._sheet["cells"][3]
    [(content, [data])] = asked(viewer, ask="pair", left=cells[1]["key"], right=cells[4]["key"])
    assert content["lines"] == (f"PSNR {psnr_db:.1f} dB", f"SSIM {ssim:.3f}")
    assert content["ticks"] == figures.scale.ticks
    expected = np.asarray(heat_picture(levels, figures.scale))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_flips_map_of_a_pair(comparison):
    pytest.importorskip("flip_evaluator")
    viewer = PictureViewer(comparison)
    viewer.pair, viewer.place, viewer.map = ("none", "int4"), (YELLOW, 1), "flip"
    errors = flip_map(comparison.images["int4", YELLOW, 1], comparison.images["none", YELLOW, 1])
    figures = viewer.figures()
    assert figures.flip == pytest.approx(errors.mean())
    cells = viewer._sheet["cells"][3]
    question = {"ask": "pair", "left": cells[0]["key"], "right": cells[4]["key"], "map": "flip"}
    [(content, [data])] = asked(viewer, **question)
    assert content["lines"][2] == f"FLIP {errors.mean():.3f}"
    assert content["ticks"] == figures.scale.ticks
    expected = np.asarray(heat_picture(errors, figures.scale))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_the_grid_shows_errors_when_it_is_asked_to_and_pictures_again(comparison):
    pytest.importorskip("flip_evaluator")
    viewer = PictureViewer()
    viewer.view = "errors"  # before there is anything, too
    viewer.update(partly(comparison, 0), waiting=comparison.trials)
    assert viewer._sheet["ticks"] == []
    viewer.update(comparison)
    maps = error_maps(comparison, {})
    assert viewer._sheet["ticks"] == list(maps.scale.ticks)
    for row in viewer._sheet["cells"]:
        assert row[0]["map"] is None and row[0]["key"]
        for cell in row[1:5]:
            assert cell["map"] in viewer._small and cell["map"] != cell["key"]
            assert cell["map_caption"].startswith("FLIP 0.")
    key = viewer._sheet["cells"][0][4]["map"]
    [(_, [data])] = asked(viewer, ask="picture", key=key)
    expected = np.asarray(maps.images["int4", RED, 0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
    viewer.view = "pictures"
    assert {cell["map"] for row in viewer._sheet["cells"] for cell in row} == {None}
    assert len(viewer._small) == len({c["key"] for r in viewer._sheet["cells"] for c in r[:5]})


def test_without_flip_the_viewer_says_so_and_shows_pictures(comparison, monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    viewer = PictureViewer(comparison)
    assert viewer._no_flip.startswith("Error maps need the package flip-evaluator")
    viewer.view = "errors"  # by a script
    assert viewer._sheet["ticks"] == [] and viewer._sheet["cells"][0][1]["key"]
    cells = viewer._sheet["cells"][0]
    question = {"ask": "pair", "left": cells[0]["key"], "right": cells[1]["key"], "map": "flip"}
    [(content, _)] = asked(viewer, **question)
    assert content["text"] == viewer._no_flip


def test_the_same_picture_twice(comparison):
    viewer = PictureViewer(comparison)
    viewer.pair = ("int4", "int4")
    assert viewer.figures().lines == ("identical pictures",)


def test_an_error_reaches_the_browser(make):
    found = make(["none", "int4"], compiled=(), seeds=(0,))
    odd = {("int4", p, s): Image.new("RGB", (9, 9)) for p, s in found.workload.pairs}
    viewer = PictureViewer(dataclasses.replace(found, images=found.images | odd))
    cells = viewer._sheet["cells"][0]
    question = {"ask": "pair", "left": cells[0]["key"], "right": cells[1]["key"]}
    [(content, _)] = asked(viewer, **question)
    assert (content["answer"], content["to"]) == ("error", question)
    assert content["text"].startswith("two pictures can be compared only at the same size")
    [(content, _)] = asked(viewer, ask="picture")
    assert content["text"] == "KeyError: 'key'"


# --- where no kernel is alive -------------------------------------------------------------------


class Seen(HTMLParser):
    """Tags, pictures and words of a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.words = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_data(self, data):
        self.words.append(data)


def test_the_static_twin(make):
    prompts = ("<script>alert(1)</script> & 'quotes'", "a second")
    found = make(prompts=prompts, failed={"int2": ("failed", "killed <here>")}, compiled=())
    text = PictureViewer(found).static_html()
    seen = Seen(text)
    assert seen.tags == {"div", "table", "tr", "th", "td", "b", "br", "small", "img", "p"}
    assert "killed <here>" in seen.words and prompts[0] in seen.words
    assert len(seen.pictures) == 16
    content = grid_content(found)
    assert {fact for column in content.columns for fact in column.facts} - {"failed"} <= set(
        seen.words
    )
    for picture in seen.pictures:
        head, _, data = picture["src"].partition(",")
        assert head == "data:image/webp;base64"
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        assert opened.size == (int(picture["width"]), int(picture["height"])) == (128, 128)
    assert not re.search(r"color|http|url\(", re.sub(r"base64,[^']+", "", text))
    assert len(text) < 300_000


def test_a_long_comparison_is_cut_and_says_so(make):
    noisy = make(["none", "int2"], compiled=(), seeds=range(60), prompts=("x",), size=(160, 160))
    noise = np.random.default_rng(0)
    images = {
        key: Image.fromarray(noise.integers(0, 256, (160, 160, 3), dtype=np.uint8))
        for key in noisy.images
    }
    text = PictureViewer(dataclasses.replace(noisy, images=images)).static_html()
    assert len(text) < 800_000
    shown = text.count("<img") // 2
    assert 5 < shown < 60
    assert f"{60 - shown} more prompts and seeds are left out here." in text


@pytest.mark.parametrize("shape", [(4, 500), (500, 4)])
def test_however_large_a_run_its_static_pictures_and_table_are_small(shape):
    trials, prompts = shape
    work = Workload(
        "demo", tuple(f"prompt {n}" for n in range(prompts)), (0,), 1, None, (8, 8), "float32",
        "cpu", 1,
    )  # fmt: skip
    recipes = ["none", *(f"int8 layer{n}=none" for n in range(trials - 1))]
    made = tuple(Trial(Recipe.parse(text), "ok", weight_bytes=1) for text in recipes)
    same = Image.new("RGB", (8, 8), "red")
    images = {(trial.label, *place): same for trial in made for place in work.pairs}
    run = Comparison(work, made, images)
    page = PictureViewer(run).static_html() + table_html(results_table(run))
    assert len(page) < 1_000_000
    assert "left out here" in page


def test_a_table_looks_for_what_speed_is_told_against_once(make, monkeypatch):
    asked = []
    real = tables.speed_reference
    monkeypatch.setattr(tables, "speed_reference", lambda trials: asked.append(1) or real(trials))
    assert len(results_table(make(size=(16, 16)))) == 6
    assert len(asked) == 1
