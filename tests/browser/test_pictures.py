"""The picture viewer and the blind test, used by mouse, by touch and by keyboard."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from quantolab.report.error_maps import why_no_flip

pytestmark = pytest.mark.browser

MADE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "report")!r})
from conftest import make_comparison
import dataclasses
import ipywidgets as W
from quantolab.widgets.blind import BlindTest
from quantolab.widgets.pictures import PictureViewer
"""

VIEWER = """
killed = {"int2": ("failed", "its process was killed for using 16.2 GB")}
whole = make_comparison(failed=killed, size=SIZE)
viewer = PictureViewer(whole)
# What Python knows, for the test to read.
state = W.HTML()
state.add_class("t-state")
def show(_=None):
    state.value = f"{viewer.mode} | {viewer.pair} | {viewer.place} | {viewer.position:.2f}"
viewer.observe(show, ["mode", "pair", "place", "position"])
show()
W.VBox([viewer, state])
"""


def state_of(page):
    return page.locator(".t-state .widget-html-content")


def all_drawn(page, selector, count):
    """Wait until so many pictures are decoded."""
    page.wait_for_function(
        """([selector, count]) => {
            const all = [...document.querySelectorAll(selector)];
            return all.length === count && all.every(i => i.complete && i.naturalWidth > 0) }""",
        arg=[selector, count],
    )


def settled(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")


@pytest.fixture
def flip_is_here():
    """Whether flip-evaluator is there; else its views are absent, with a line."""
    return why_no_flip() is None


AFTER_CLOSING = """async () => {
    const dialog = document.querySelector(".ql-grid dialog");
    const heard = new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    CLOSE;
    const key = new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
    document.activeElement.dispatchEvent(key);
    await heard;
    return document.activeElement.getAttribute("aria-label");
}"""


def test_the_grid(notebooks, shoot, flip_is_here):
    page = notebooks.open([MADE, VIEWER.replace("SIZE", "(128, 128)")])
    grid = page.locator(".ql-grid")
    all_drawn(page, ".ql-cell img", 20)
    expect(grid.locator("thead th .ql-name")).to_have_text(
        ["none", "float8", "int8", "int8 compiled", "int4", "int2"]
    )
    expect(grid.locator(".ql-reason")).to_have_text("its process was killed for using 16.2 GB")
    expect(grid.locator(".ql-caption").nth(4)).to_have_text(re.compile(r"^\d\d\.\d dB$"))
    shoot(page, "grid-light")

    # FLIP's errors instead, the reference's own pictures staying; then the pictures again.
    if flip_is_here:
        look = grid.get_by_label("What the grid shows")
        look.select_option("Errors (FLIP)")
        expect(grid.locator(".ql-caption").nth(4)).to_have_text(re.compile(r"^FLIP 0\.\d{3}$"))
        expect(grid.locator(".ql-legend .ql-ticks span").first).to_have_text("0")
        all_drawn(page, ".ql-cell img", 20)
        shoot(page, "errors-light")
        look.select_option("Pictures")
        expect(grid.locator(".ql-caption").nth(4)).to_have_text(re.compile(r"^\d\d\.\d dB$"))
        expect(grid.locator(".ql-legend")).to_be_hidden()
        all_drawn(page, ".ql-cell img", 20)

    dialog = grid.locator("dialog")
    first = "none: a red circle above a blue square · seed 0"
    # Who presses a key before the page hears of the closing goes on from there.
    for way in (
        "dialog.querySelector('.ql-close').click()",
        "dialog.dispatchEvent(new Event('cancel', { cancelable: true }))",
    ):
        grid.get_by_role("button", name=first).click()
        expect(dialog.locator("img")).to_have_attribute("alt", first)
        assert page.evaluate(AFTER_CLOSING.replace("CLOSE", way)).startswith("float8: ")

    # By mouse: a click shows the whole picture, a click beside it closes it.
    grid.get_by_role("button", name=first).click()
    expect(dialog.locator("img")).to_have_attribute("alt", first)
    all_drawn(page, ".ql-full img", 1)
    page.mouse.click(5, 5)
    expect(dialog).not_to_be_visible()

    # By keyboard, from the cell that was shown last.
    cells = page.locator(".jp-Cell").count()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    second = "float8: a red circle above a blue square · seed 1"
    expect(dialog.locator("img")).to_have_attribute("alt", second)
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("img")).to_have_attribute("alt", second.replace("float8", "int8"))
    expect(dialog.locator(".ql-name")).to_have_text("int8")
    expect(dialog.get_by_role("status").first).to_have_text("")
    shoot(page, "full-light")

    # Larger by the wheel around the pointer, moved by hand and by keys, to the pixel, and back.
    stage, picture = dialog.locator(".ql-full-stage").bounding_box(), dialog.locator("img")
    across = lambda: picture.bounding_box()["width"] / stage["width"]  # noqa: E731
    assert across() == pytest.approx(1)
    page.mouse.move(stage["x"] + stage["width"] / 4, stage["y"] + stage["height"] / 2)
    for _ in range(3):
        page.mouse.wheel(0, -120)
    settled(page)
    times = across()
    assert times > 1.5
    before = picture.bounding_box()
    pointed = (stage["x"] + stage["width"] / 4 - before["x"]) / before["width"]
    assert pointed == pytest.approx(0.25, abs=0.01)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4 - 30, stage["y"] + stage["height"] / 2 - 20)
    page.mouse.up()
    settled(page)
    moved = picture.bounding_box()
    assert (moved["x"] - before["x"], moved["y"] - before["y"]) == pytest.approx((-30, -20), abs=1)
    page.keyboard.press("Shift+ArrowLeft")
    settled(page)
    assert picture.bounding_box()["x"] == pytest.approx(moved["x"] + stage["width"] / 10, abs=1)
    page.keyboard.press("1")
    settled(page)
    ratio = page.evaluate("devicePixelRatio")
    assert picture.bounding_box()["width"] * ratio == pytest.approx(128)
    expect(dialog.locator(".ql-zoom-said")).to_have_text("100 %")
    page.keyboard.press("ArrowLeft")  # the next picture is looked at in the same way
    expect(dialog.locator("img")).to_have_attribute("alt", second)
    assert picture.bounding_box()["width"] * ratio == pytest.approx(128)
    page.keyboard.press("ArrowRight")
    dialog.get_by_role("button", name="The whole picture").click()
    settled(page)
    assert picture.bounding_box() == pytest.approx(stage)
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    third = second.replace("float8", "int8")
    expect(grid.locator(".ql-cell:focus")).to_have_attribute("aria-label", re.compile(third))
    # The failed column is one cell; letters are no commands for the notebook.
    for key in ("End", "b", "d", "d", "x"):
        page.keyboard.press(key)
    expect(grid.locator(".ql-reason")).to_be_focused()
    assert page.locator(".jp-Cell").count() == cells


def test_compare(notebooks, shoot, flip_is_here):
    page = notebooks.open([MADE, VIEWER.replace("SIZE", "(128, 128)")])
    grid = page.locator(".ql-grid")
    grid.get_by_role("tab", name="Grid").press("ArrowRight")
    expect(grid.get_by_role("tab", name="Compare")).to_be_focused()
    all_drawn(page, ".ql-stages img", 3)
    expect(state_of(page)).to_have_text(re.compile(r"^compare \| \('none', 'int4'\).*0\.50$"))
    handle = grid.get_by_role("slider")
    expect(handle).to_have_attribute("aria-valuetext", "50 % none, 50 % int4")

    # The line by keyboard and by mouse.
    handle.focus()
    for key in ("ArrowRight", "ArrowRight", "PageUp"):
        page.keyboard.press(key)
    expect(handle).to_have_attribute("aria-valuenow", "62")
    expect(state_of(page)).to_have_text(re.compile(r"0\.62$"))
    box = grid.locator(".ql-slider .ql-stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 9)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40, steps=4)
    page.mouse.up()
    expect(handle).to_have_attribute("aria-valuenow", "25")
    expect(handle).to_be_focused()

    # Zoomed, both sides and the difference move together, and the line stays.
    shown = """() => [...document.querySelectorAll(".ql-stages img")].map(
        (image) => getComputedStyle(image).transform)"""
    whole = page.evaluate(shown)
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    settled(page)
    larger = page.evaluate(shown)
    assert len({*larger}) == 1 and larger != whole
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    settled(page)
    moved = page.evaluate(shown)
    assert len({*moved}) == 1 and moved != larger
    expect(handle).to_have_attribute("aria-valuenow", "25")
    shoot(page, "compare-zoomed-light")
    page.keyboard.press("0")
    settled(page)
    assert page.evaluate(shown) == whole
    handle.focus()
    page.mouse.move(box["x"], box["y"])
    expect(handle).to_have_attribute("aria-valuenow", "25")

    # The numbers of this pair, the scale of its difference, and the worst place.
    heat = grid.locator(".ql-heat")
    expect(heat.locator(".ql-fact").first).to_have_text(re.compile(r"^PSNR \d\d\.\d dB$"))
    expect(heat.locator(".ql-ticks span")).to_have_text(["0", "16", "32 or more"])
    shoot(page, "compare-light")
    if flip_is_here:
        grid.get_by_label("What the difference shows").select_option("FLIP")
        expect(heat.locator(".ql-fact").nth(2)).to_have_text(re.compile(r"^FLIP 0\.\d{3}$"))
        expect(heat.locator("figcaption")).to_contain_text("if the two pictures took turns")
        shoot(page, "compare-flip-light")
        grid.get_by_label("What the difference shows").select_option("8-bit levels")
        expect(heat.locator(".ql-fact")).to_have_count(2)
    grid.get_by_label("Left recipe").select_option("float8")
    expect(state_of(page)).to_have_text(re.compile(r"'float8', 'int4'"))
    before = heat.locator(".ql-fact").first.inner_text()
    grid.get_by_label("Prompt and seed").select_option(index=3)
    expect(state_of(page)).to_have_text(re.compile(r"'two yellow stars on a green field', 1"))
    grid.get_by_role("button", name="Worst pair").click()
    expect(state_of(page)).to_have_text(re.compile(r"'a red circle above a blue square', 1"))
    expect(heat.locator(".ql-fact").first).not_to_have_text(before)
    grid.get_by_label("Difference", exact=True).uncheck()
    expect(heat).not_to_be_visible()

    # A recipe without pictures says why.
    grid.get_by_label("Right recipe").select_option("int2")
    expect(grid.locator(".ql-said")).to_have_text("int2: its process was killed for using 16.2 GB")


ARRIVING = """
whole = make_comparison(["none", "int8", "int4"], size=(640, 480), seeds=(0,))
labels = [trial.label for trial in whole.trials]
viewer, more, state = PictureViewer(), W.Button(description="More"), W.HTML()
more.add_class("t-more")
state.add_class("t-state")
finished = 0
def arrive(_=None):
    global finished
    finished += 1
    here = labels[:finished]
    images = {key: picture for key, picture in whole.images.items() if key[0] in here}
    part = dataclasses.replace(whole, trials=whole.trials[:finished], images=images)
    viewer.update(part, waiting=whole.trials[finished:])
    state.value = f"{finished} finished"
more.on_click(arrive)
arrive()
W.VBox([more, viewer, state])
"""


def test_trials_arrive(notebooks, shoot, flip_is_here):
    page = notebooks.open([MADE, ARRIVING], theme="dark", touch=True)
    grid = page.locator(".ql-grid")
    more = page.locator(".t-more")
    all_drawn(page, ".ql-cell img", 2)
    expect(grid.locator("[data-note=waiting]")).to_have_count(6)
    expect(grid.locator("thead th .ql-name")).to_have_text(
        ["none", "int8", "int8 compiled", "int4"]
    )
    grid.locator(".ql-cell").nth(1).focus()
    shoot(page, "waiting-dark")
    page.evaluate("() => { window.kept = document.querySelector('.ql-cell img') }")
    # Pressed by script, which leaves the focus where the user has it.
    more.evaluate("button => button.click()")
    all_drawn(page, ".ql-cell img", 4)
    focused = grid.locator(".ql-cell:focus")
    expect(focused).to_have_attribute("aria-label", re.compile("^none: two yellow stars"))
    assert page.evaluate("() => window.kept === document.querySelector('.ql-cell img')")

    # Two are compared while the one is still waited for; then it comes, and touch moves the line.
    grid.get_by_role("tab", name="Compare").tap()
    expect(grid.locator(".ql-said")).to_have_text("int4: waiting")
    expect(grid.get_by_label("Right recipe")).to_have_value("int4")
    more.tap()
    expect(state_of(page)).to_have_text("3 finished")
    more.tap()
    all_drawn(page, ".ql-stages img", 3)
    expect(grid.locator(".ql-said")).to_have_text("")
    box = grid.locator(".ql-slider .ql-stage").bounding_box()
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    expect(grid.get_by_role("slider")).to_have_attribute("aria-valuenow", "75")
    expect(grid.locator(".ql-heat .ql-name")).to_have_text("Difference of these two pictures")
    shoot(page, "compare-dark")
    if flip_is_here:
        grid.get_by_label("What the difference shows").select_option("FLIP")
        expect(grid.locator(".ql-heat .ql-fact")).to_have_count(3)
        shoot(page, "compare-flip-dark")
    grid.get_by_role("tab", name="Grid").tap()
    if flip_is_here:
        grid.get_by_label("What the grid shows").select_option(index=1)
        expect(grid.locator(".ql-legend")).to_be_visible()
        all_drawn(page, ".ql-cell img", 8)
        shoot(page, "errors-dark")
        grid.get_by_label("What the grid shows").select_option(index=0)
    all_drawn(page, ".ql-cell img", 8)
    # However early it is looked at: what is opened follows the grid.
    grid.locator(".ql-cell").nth(3).tap()
    expect(grid.locator("dialog").get_by_role("status").first).to_have_text("")
    shoot(page, "full-dark")
    grid.get_by_role("button", name="Compare with none").tap()
    expect(grid.get_by_label("Left recipe")).to_have_value("none")
    expect(grid.get_by_label("Right recipe")).to_have_value("int4")


BLIND = """
test = BlindTest(make_comparison(), seed=1)
sides = W.HTML()
sides.add_class("t-state")
def tell(_=None):
    sides.value = str(test._score.side)
test.said.observe(tell, "value")
tell()
W.VBox([test, sides])
"""


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.sweep)])
def test_the_blind_test(notebooks, shoot, theme):
    page = notebooks.open([MADE, BLIND], theme=theme)
    blind = page.locator(".ql-blind")
    said = blind.locator(".ql-blind-sentence")
    all_drawn(page, ".ql-answer img", 2)
    assert {image.get_attribute("alt") for image in blind.locator("img").all()} == {
        "Picture 1", "Picture 2",
    }  # fmt: skip
    expect(said).to_have_text(re.compile("^No answers yet"))
    blind.get_by_role("group", name=re.compile("Which of these two")).focus()
    right = 0
    for turn, key in enumerate(["1", "2", "ArrowLeft", "ArrowRight", "Enter", "click"], 1):
        if key == "Enter":
            blind.locator(".ql-answer-2").focus()
        side = state_of(page).inner_text()
        answer = "1" if key in ("1", "ArrowLeft") else "2"
        right += side == answer
        if key == "click":
            blind.locator(".ql-answer-2").click()
        else:
            page.keyboard.press(key)
        word = "right" if side == answer else "wrong"
        expect(blind.locator(".ql-blind-last")).to_have_text(
            f"Your last answer was {word}: picture {side} was int2."
        )
        expect(said).to_have_text(re.compile(f"{right} of {turn} right"))
        # The next two are there: only then is an answer taken.
        expect(blind.locator(".ql-two")).not_to_have_class(re.compile("ql-busy"))
    shoot(page, f"blind-{theme}")
    blind.get_by_label("Recipe").select_option("float8")
    expect(said).to_have_text(re.compile("float8 can be told"))


@pytest.mark.parametrize("app", ["voila", pytest.param("notebook", marks=pytest.mark.sweep)])
def test_elsewhere(notebooks, shoot, app):
    page = notebooks.open([MADE, VIEWER.replace("SIZE", "(128, 128)")], app=app)
    all_drawn(page, ".ql-cell img", 20)
    page.get_by_role("tab", name="Compare").click()
    all_drawn(page, ".ql-stages img", 3)
    expect(page.locator(".ql-heat .ql-name")).to_have_text("Difference of these two pictures")
    shoot(page, f"compare-{app}")


LARGE = """
import sys, pathlib, tempfile
import ipywidgets as W
import numpy as np
from PIL import Image
import quantolab as ql
from quantolab.recipes import Recipe
from quantolab.records import Comparison, PictureQuality, Trial, Workload
from quantolab.run import journal
from quantolab.widgets.pictures import PictureViewer
from quantolab.widgets.tabling import ResultsTable
from quantolab.widgets.code_box import CodeBox

prompts = tuple(f"{n} foxes" for n in range(40))
workload = Workload("demo", prompts, (0,), 1, None, (512, 512), "bfloat16", "cpu", 1)
quality = tuple(PictureQuality(prompt, 0, 30.0, 0.9) for prompt in prompts)
trials = (Trial(Recipe("none"), "ok"), Trial(Recipe("int8"), "ok", quality=quality))
ramp = np.linspace(0, 255, 512, dtype="uint8")
base = np.dstack([np.tile(ramp, (512, 1)), np.tile(ramp[:, None], (1, 512))])
def picture(n, shade):
    blue = np.full((512, 512, 1), (n * 6 + shade * 3) % 256, "uint8")
    return Image.fromarray(np.dstack([base, blue]))
images = {(t.label, p, 0): picture(n, i) for n, p in enumerate(prompts)
          for i, t in enumerate(trials)}
folder = pathlib.Path(tempfile.mkdtemp()) / "run"
journal.save(Comparison(workload, trials, images), folder)
run = ql.load_comparison(folder)
viewer, table = PictureViewer(run), ResultsTable(ql.results_table(run))
state = W.HTML()
state.add_class("t-state")
def show(_=None):
    state.value = f"{sum(p.is_decoded for p in run.images.values())} decoded"
look = W.Button(description="count")
look.add_class("t-count")
look.on_click(show)
W.VBox([viewer, table, CodeBox("Script", "print(1)"), look, state])
"""


def decoded(page):
    page.locator(".t-count").click()
    return int(state_of(page).inner_text().split()[0])


def test_large_grids_fetch_what_is_looked_at_take_the_width_and_copy(notebooks, shoot):
    page = notebooks.open([LARGE])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    images = page.locator(".ql-cell img")
    expect(images).to_have_count(80)
    sharp = "([i, least]) => document.querySelectorAll('.ql-cell img')[i].naturalWidth >= least"
    page.wait_for_function(sharp, arg=[0, 200])
    state_of(page).wait_for(state="attached")
    page.locator(".t-count").click()
    expect(state_of(page)).to_have_text(re.compile(r"^\d+ decoded$"))
    assert decoded(page) < 60
    assert images.nth(79).evaluate("image => image.naturalWidth") == 0  # out of sight
    widths = {}
    for width in (700, 1280, 1800):
        page.set_viewport_size({"width": width, "height": 900})
        settled(page)
        grid = page.locator(".ql-scroller")
        assert grid.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
        widths[width] = images.first.bounding_box()["width"]
        shoot(page, f"grid-fit-{width}")
    assert widths[700] < widths[1280] <= widths[1800] and widths[1800] > 400
    page.get_by_label("Size of the pictures").select_option("Small")
    expect(images.first).to_have_css("width", "160px")
    page.get_by_label("Size of the pictures").select_option("Fit the width")
    images.nth(79).scroll_into_view_if_needed()
    page.wait_for_function(sharp, arg=[79, 400])

    # Copies: the table twice, the script, a picture.
    table = page.locator(".ql-table")
    table.get_by_role("button", name="Copy as Markdown").click()
    expect(table.get_by_role("status").first).to_have_text("Copied")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.splitlines()[1].startswith("|---|---:|") and "\n| int8 |" in text
    table.get_by_role("button", name="Copy as TSV").click()
    expect(table.get_by_role("status").nth(1)).to_have_text("Copied")
    cells = [x.split("\t") for x in page.evaluate("navigator.clipboard.readText()").splitlines()]
    assert [row[0] for row in cells] == ["recipe", "none", "int8"]
    assert len({len(row) for row in cells}) == 1
    page.get_by_role("button", name="Copy: Script").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text === 'print(1)')")
    images.first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Copy picture").click()
    expect(dialog.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("""async () => {
        const [item] = await navigator.clipboard.read();
        return (await createImageBitmap(await item.getType("image/png"))).width }""")
    assert copied == 512
    shoot(page, "full-1800")
