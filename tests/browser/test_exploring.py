"""The explorer as a person uses it: chosen, run, watched, cancelled, looked at, taken along."""

import base64
import re

import pandas as pd
import pytest
from PIL import Image

from quantolab.run.origin import Origin, write_picture

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api").expect

# The user's own list of recent runs is left alone.
MADE = "import os\nos.environ['XDG_CACHE_HOME'] = os.path.abspath('cache')"
PANEL = "from quantolab import widgets\npanel = widgets.explorer('demo')\npanel"
# In float32: processors without bfloat16 of their own would take minutes for a trial.
SMALL = (
    "panel.set(recipes=['none', 'int8'], prompts='a white house', steps=2, repeats=1, "
    "dtype='float32')"
)
LONG = (
    "panel.set(recipes=['none', 'int8'], prompts='a white house', steps=6, repeats=60, "
    "dtype='float32')"
)


def fill(page, label, text):
    """Type into a field and leave it, as the keyboard does."""
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Tab")


# Keeps what the grid showed, one after the other: a look now and then could miss one of them.
WATCH_GRID = """() => {
    window.gridStates = [];
    new MutationObserver(() => {
        const grid = document.querySelector(".ql-grid");
        if (!grid) return;
        const pictures = grid.querySelectorAll(".ql-cell img").length;
        const coming = /waiting|being made/.test(grid.textContent);
        const state = `${pictures}${coming ? " and waiting" : ""}`;
        if (window.gridStates.at(-1) !== state) window.gridStates.push(state);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def status(page):
    return page.locator(".ql-status")


def test_chosen_run_and_taken_along(notebooks, shoot, tmp_path, press):
    page = notebooks.open([MADE, PANEL, "panel.table.recipe.tolist()"], run=False)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run_cells(page, 2)
    panel = page.locator(".ql-panel")

    # Chosen by keyboard and by mouse; what is wrong is said at once.
    expect(page.locator(".ql-estimate")).to_contain_text("Predicted from shapes")
    expect(page.locator(".ql-estimate")).to_contain_text("fits;")
    shoot(panel, "explorer-form-light")
    for word in ("float8", "int4", "int2"):
        press(panel.get_by_label(word, exact=True), "Space")
    fill(page, "Prompts", "a white house with a red roof")
    fill(page, "Size", "127x128")
    expect(page.locator(".ql-problem")).to_contain_text("did you mean 128x128?")
    expect(page.locator(".ql-run")).to_be_disabled()
    fill(page, "Size", "128x128")
    expect(page.locator(".ql-problem")).to_have_text("")
    fill(page, "Steps", "2")
    fill(page, "Rounds", "1")
    page.get_by_label("Compute in", exact=True).select_option("float32")
    expect(page.locator(".ql-estimate")).to_contain_text("2 trials: 2 pictures to compare and 2")

    # Run by keyboard; results stand beside those that are still to come.
    page.evaluate(WATCH_GRID)
    press(page.locator(".ql-run"))
    expect(page.locator(".ql-grid .ql-cell img")).to_have_count(2)
    expect(status(page)).to_contain_text("Done: 2 trials")
    states = page.evaluate("window.gridStates")
    assert "1 and waiting" in states and states[-1] == "2"
    shoot(page, "explorer-grid-light")

    # The table sorts by mouse and by keyboard.
    panel.get_by_role("tab", name="Table").click()
    rows = panel.locator(".ql-table tbody th")
    expect(rows).to_have_text(["none", "int8"])
    heading = panel.locator(".ql-table thead th").nth(1)
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    expect(rows).to_have_text(["int8", "none"])
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "descending")
    expect(rows).to_have_text(["none", "int8"])
    expect(heading.get_by_role("button")).to_be_focused()
    panel.get_by_label("all columns").check()
    expect(panel.locator(".ql-table thead")).to_contain_text("predicted_weight_bytes")

    panel.get_by_role("tab", name="Trade-off").click()
    expect(panel.locator("img.ql-on-light")).to_be_visible()
    expect(panel.locator("img.ql-on-dark")).not_to_be_visible()

    # What is taken along is read back.
    panel.get_by_role("tab", name="Take away").click()
    press(panel.locator(".ql-export").get_by_role("button", name="CSV"))
    link = panel.locator(".ql-download")
    with page.expect_download() as got:
        link.click()
    got.value.save_as(tmp_path / "results.csv")
    table = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    assert table.recipe.tolist() == ["none", "int8"]
    said = panel.locator(".ql-export code").inner_text()
    assert pd.read_csv(said, keep_default_na=False).equals(table)
    panel.get_by_role("button", name="Copy: The call that repeats this run").click()
    expect(panel.get_by_text("Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    assert 'recipes=["none", "int8"]' in code
    panel.get_by_role("button", name="Diffusers script").click()
    expect(panel.locator(".ql-code-box pre").last).to_contain_text("from optimum.quanto import")
    shoot(page, "explorer-take-light")

    # The next cell has the Python objects.
    page.locator(".jp-CodeCell").nth(2).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".jp-CodeCell").nth(2)).to_contain_text("['none', 'int8']")

    # A reloaded page shows what there was.
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-NotebookPanel-toolbar")).to_be_visible()
    page.wait_for_function(
        "() => !document.querySelector('.lm-TabBar-tab.jp-mod-current.jp-mod-dirty')"
    )
    page.reload()
    expect(status(page)).to_contain_text("Done: 2 trials")
    page.locator(".ql-panel").get_by_role("tab", name="Table").click()
    expect(page.locator(".ql-table tbody th")).to_have_text(["none", "int8"])


def test_cancelled_and_resumed_while_other_cells_run(notebooks, press):
    page = notebooks.open([MADE, PANEL, LONG, "6 * 7"], run=False)
    run_cells(page, 3)
    page.locator(".ql-run").click()
    expect(page.locator(".ql-grid .ql-cell img")).to_have_count(1)
    expect(status(page)).to_contain_text("int8: timing")
    expect(page.locator(".ql-progress").get_by_role("progressbar")).to_be_visible()
    page.locator(".jp-CodeCell").nth(3).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".jp-CodeCell").nth(3)).to_contain_text("42")
    expect(status(page)).to_contain_text("int8: timing")  # it ran meanwhile

    press(page.locator(".ql-cancel"))
    expect(status(page)).to_contain_text("2 of 2 trials are kept")
    expect(page.locator(".ql-cancel")).to_be_disabled()
    expect(page.locator(".ql-run")).to_be_enabled()
    expect(page.locator(".ql-grid .ql-cell img")).to_have_count(2)
    page.locator(".ql-resume").click()
    expect(status(page)).to_contain_text("int8: timing")
    page.locator(".ql-cancel").click()
    expect(status(page)).to_contain_text("2 of 2 trials are kept")


# Pictures are shown in both always: tests/browser/test_pictures.py.
@pytest.mark.sweep
@pytest.mark.parametrize("app", ["voila", "notebook"])
def test_in_other_places(notebooks, shoot, app):
    page = notebooks.open([MADE, f"{PANEL}\n{SMALL}".replace("panel\npanel.set", "panel.set"),
                           "panel"], app=app)  # fmt: skip
    expect(page.locator(".ql-estimate")).to_contain_text("fits;")
    page.locator(".ql-run").click()
    expect(status(page)).to_contain_text("Done: 2 trials")
    expect(page.locator(".ql-grid .ql-cell img")).to_have_count(2)
    page.get_by_role("tab", name="Table").click()
    expect(page.locator(".ql-table tbody th")).to_have_text(["none", "int8"])
    shoot(page, f"explorer-{app}")


@pytest.mark.sweep
def test_an_earlier_run_in_the_dark(notebooks, shoot):
    page = notebooks.open(
        [MADE, _SAVED, "from quantolab import widgets\nwidgets.explorer(run='saved')"],
        theme="dark",
    )
    panel = page.locator(".ql-panel")
    expect(panel.locator(".ql-grid .ql-cell img")).to_have_count(20)
    panel.get_by_role("tab", name="Table").click()
    expect(panel.locator(".ql-failed td")).to_have_text("failed: killed for using 16.2 GB")
    shoot(page, "explorer-table-dark")
    panel.get_by_role("tab", name="Trade-off").click()
    expect(panel.locator("img.ql-on-dark")).to_be_visible()
    expect(panel.locator("img.ql-on-light")).not_to_be_visible()
    shoot(page, "explorer-tradeoff-dark")
    panel.get_by_role("tab", name="Blind test").click()
    expect(panel.locator(".ql-question")).to_be_visible()
    expect(panel.locator(".ql-resume")).to_be_visible()


def test_runs_side_by_side_by_keyboard_alone(notebooks, shoot, press):
    page = notebooks.open([MADE, _TWO_SAVED, PANEL], width=1280)
    panel = page.locator(".ql-panel")
    panel.get_by_role("tab", name="Runs").focus()
    page.keyboard.press("Enter")
    boxes = panel.locator(".ql-runs-list input")
    expect(boxes).to_have_count(2)
    boxes.nth(0).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")  # its name
    page.keyboard.press("Tab")
    expect(boxes.nth(1)).to_be_focused()
    page.keyboard.press("Space")
    for name in ("dog", "fox"):
        expect(panel.get_by_role("checkbox", name=f"Choose runs/{name}")).to_be_checked()
    press(panel.get_by_role("button", name="Side by side"))
    beside = panel.locator(".ql-beside")
    expect(beside.locator(".ql-cell img")).to_have_count(14)
    expect(beside).to_contain_text("Seeds: 2 in")
    expect(beside.locator(".ql-table tbody tr")).to_have_count(5)
    shoot(page, "explorer-runs-light")
    # On a small screen no column of it is cut.
    page.set_viewport_size({"width": 700, "height": 1000})
    for table in (beside.locator(".ql-table .ql-scroll"), panel.locator(".ql-runs-list")):
        expect(table.locator("th", has_text="run").first).to_be_visible()
        assert table.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    page.set_viewport_size({"width": 1280, "height": 1000})

    # What is renamed stays ticked; what is opened fills the other tabs.
    press(boxes.nth(1), "Space")
    field = panel.get_by_placeholder("new name")
    field.fill("wolf")
    field.press("Tab")
    press(panel.get_by_role("button", name="Rename"))
    expect(panel.locator(".ql-runs-list .ql-open")).to_have_text(
        [re.compile("runs/(wolf|fox|dog)")] * 2
    )
    expect(panel.get_by_role("checkbox", name="Choose runs/wolf")).to_be_checked()
    press(panel.get_by_role("button", name="runs/wolf"))
    expect(panel.locator(".ql-results")).to_contain_text("Results in runs/wolf")
    expect(panel.get_by_role("tab", name="Pictures")).to_have_attribute("aria-selected", "true")


# Drops a file onto an element, as a person's hand does.
DROP = """(element, file) => {
    const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], "fox.png", {type: "image/png"}));
    for (const name of ["dragenter", "dragover", "drop"]) {
        element.dispatchEvent(
            new DragEvent(name, {dataTransfer, bubbles: true, cancelable: true})
        );
    }
}"""


def picture_file(folder):
    """Return a PNG file that says what it was made with, in base64."""
    origin = Origin("a fox", 7, "int8 proj_out=none", "demo", steps=3)
    write_picture(Image.new("RGB", (64, 96)), folder / "fox.png", origin)
    return base64.b64encode((folder / "fox.png").read_bytes()).decode()


@pytest.mark.sweep
def test_two_panels_do_not_disturb_each_other(notebooks, tmp_path):
    other = "other = widgets.explorer('demo')\nother"
    page = notebooks.open([MADE, PANEL, other])
    panels = page.locator(".ql-panel")
    expect(panels).to_have_count(2)
    steps = [panels.nth(i).get_by_label("Steps", exact=True) for i in range(2)]
    steps[0].fill("none")
    steps[0].press("Tab")
    expect(panels.nth(0).locator(".ql-problem")).to_contain_text("steps must be a whole number")
    expect(panels.nth(1).locator(".ql-problem")).to_have_text("")
    expect(steps[1]).to_have_value("20")
    expect(panels.nth(1).locator(".ql-run")).to_be_enabled()

    # The settings of a dropped picture go to the panel that it was dropped on.
    panels.nth(1).locator(".ql-estimate").evaluate(DROP, picture_file(tmp_path))
    expect(status(panels.nth(1))).to_contain_text("Taken from fox.png: prompt, seed, steps")
    for label, value in {"Steps": "3", "Prompts": "a fox", "Size": "64x96", "Seeds": "7"}.items():
        expect(panels.nth(1).get_by_label(label, exact=True)).to_have_value(value)
    expect(steps[0]).to_have_value("none")
    expect(panels.nth(1).locator(".ql-drop-here")).to_have_count(0)


_SAVED = """
import sys
from pathlib import Path
sys.path.insert(0, FOLDER)
from conftest import make_comparison
from quantolab.run import journal
journal.save(make_comparison(failed={"int2": ("failed", "killed for using 16.2 GB")}), "saved")
""".replace("FOLDER", repr(str(__import__("pathlib").Path(__file__).parents[1] / "report")))

_TWO_SAVED = (
    _SAVED.rpartition("journal.save")[0]
    + """
import os
os.mkdir("beside"), os.chdir("beside")  # apart from what other tests left
journal.save(make_comparison(("none", "int8", "int4"), compiled=(), seeds=(0,)), "runs/fox")
journal.save(make_comparison(("none", "int8"), compiled=(), seeds=(0, 1)), "runs/dog")
"""
)


def run_cells(page, count):
    """Run the first cells; those after them are for later."""
    for number in range(count):
        cell = page.locator(".jp-CodeCell").nth(number)
        cell.locator(".jp-InputPrompt").click()
        page.keyboard.press("Control+Enter")
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
