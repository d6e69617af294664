"""Take pictures of every panel, for people to look at: three widths, light and dark, in Chromium.

``python tests/browser/screenshots.py FOLDER [--only NAME]... [--themes light,dark]`` makes two
small runs of the demo model, opens each panel, and writes ``PANEL-STATE-WIDTH-THEME.png``
into FOLDER: some 100 pictures in a few minutes. Any error in a page ends it with status 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from compiled_rows import ROW
from conftest import PATIENCE, Notebooks, Server, start_browser

WIDTHS = (700, 1280, 1800)
HEIGHT = 3000  # JupyterLab scrolls inside the page, and what is scrolled away is in no picture

START = """
import os
from pathlib import Path
os.environ['XDG_CACHE_HOME'] = os.path.abspath('cache')
import quantolab as ql
from quantolab import widgets
"""
FILE = "folder = ql.demo_model() / 'transformer'\nos.makedirs('saved', exist_ok=True)\n"

COMPILED = (
    ROW,
    {
        **ROW,
        "way": "repeated",
        "compiled_seconds": 3.0,
        "compiled_samples": (2.85, 3.0, 3.15) * 2,
    },
    {"recipe": "int2", "way": "default", "status": "failed", "reason": "no graph could be made"},
)

Look = Callable[[Page, Locator], Iterator[tuple[str, Locator | Page]]]


def form(page: Page, panel: Locator) -> Iterator[tuple[str, Locator]]:
    """The explorer as it opens, with everything unfolded, and with a mistake in it."""
    expect(panel.locator(".ql-estimate")).to_contain_text("fits;")
    yield "form", panel
    panel.get_by_text("Layers to keep").first.click()
    panel.get_by_text("Words by component and layer").click()
    panel.get_by_label("Find layers").first.fill("proj_out")
    panel.get_by_label("Find layers").first.press("Enter")
    panel.get_by_label("Size", exact=True).fill("127x128")
    panel.get_by_label("Size", exact=True).press("Tab")
    expect(panel.locator(".ql-problem")).to_contain_text("did you mean")
    yield "form-unfolded", panel


def running(page: Page, panel: Locator) -> Iterator[tuple[str, Locator]]:
    """The explorer while it runs, and after Cancel."""
    panel.locator(".ql-run").click()
    expect(panel.locator(".ql-grid .ql-cell img").first).to_be_visible()
    yield "running", panel
    panel.locator(".ql-cancel").click()
    expect(panel.locator(".ql-status")).to_contain_text("Cancelled")
    yield "cancelled", panel


def results(page: Page, panel: Locator) -> Iterator[tuple[str, Locator | Page]]:
    """Every tab of the explorer after a run."""
    expect(panel.locator(".ql-grid .ql-cell img").first).to_be_visible()
    yield "pictures", panel
    panel.get_by_role("tab", name="Compare").click()
    expect(panel.locator(".ql-heat .ql-fact").first).to_be_visible()
    yield "compare", panel
    panel.get_by_role("tab", name="Grid").click()
    cell = panel.locator(".ql-grid .ql-cell:visible").nth(1)
    cell.focus()
    cell.press("Enter")
    yield "full", page
    page.keyboard.press("Escape")
    for name in ("Table", "Trade-off", "Blind test", "Take away", "Runs"):
        panel.get_by_role("tab", name=name).click()
        if name == "Runs":
            for box in panel.locator(".ql-runs-list input").all()[:2]:
                box.check()
            panel.get_by_role("button", name="Side by side").click()
            expect(panel.locator(".ql-beside .ql-cell img").first).to_be_visible()
        if name == "Trade-off":
            expect(panel.locator("img.ql-plot:visible")).to_have_count(1)
        if name == "Take away":
            panel.get_by_role("button", name="CSV").click()
            panel.get_by_role("button", name="Diffusers script").click()
            expect(panel.locator(".ql-code-box pre").last).to_contain_text("import")
        yield name.lower().replace(" ", "-"), panel
        if name == "Table":
            panel.get_by_label("all columns").check()
            yield "table-all", panel
            panel.get_by_label("all columns").uncheck()


def still(selector: str, text: str) -> Look:
    """A panel that a cell has brought where it shall be looked at."""

    def look(page: Page, panel: Locator) -> Iterator[tuple[str, Locator]]:
        expect(panel.locator(selector)).to_contain_text(text)
        yield "", panel

    return look


PANELS: dict[str, tuple[str, str, Look]] = {
    "explorer": ("widgets.explorer('demo')", ".ql-explorer", form),
    "explorer-run": (
        "panel = widgets.explorer('demo')\npanel.set(steps=30, repeats=200)\npanel",
        ".ql-explorer",
        running,
    ),
    "explorer-after": ("widgets.explorer(run='runs/house')", ".ql-explorer", results),
    "skip": (
        "skips = widgets.skip_explorer('demo')\nskips.skip = ('proj_out', '*.attn.to_q')\n"
        "skips.wait()\nskips",
        ".ql-skip-explorer",
        still(".ql-status", "Linear layers stay unquantized"),
    ),
    "single-file": (
        FILE + "single = widgets.single_file_loader()\n"
        "single.path.value = str(folder / 'diffusion_pytorch_model.safetensors')\n"
        "single.wait()\nsingle.run(wait=True)\nsingle",
        ".ql-single-file",
        still(".ql-status", "Loaded in"),
    ),
    "save": (
        FILE + "saving = widgets.save_panel('demo')\nsaving.run(wait=True)\n"
        "saving.verify(wait=True)\nsaving",
        ".ql-save",
        still(".ql-status", "everything that was compared is equal"),
    ),
    "compile": (
        "compiling = widgets.compile_explorer('demo')\n"
        f"for row in {COMPILED!r}:\n    compiling._add_row(row)\n"
        "compiling._draw_plot()\ncompiling",
        ".ql-compile",
        still("table", "slower"),
    ),
}


def make_runs(folder: Path) -> None:
    """Make the runs that are shown, unless an earlier call has."""
    import quantolab as ql

    prompts = ["a white house with a red roof", "two yellow stars above a green square"]
    recipes = {"house": ["none", "int8", "int8 proj_out=none", "int4", "int2"]}
    for name, words in {**recipes, "stars": ["none", "float8"]}.items():
        if not (folder / name).exists():
            out = folder / name
            ql.compare("demo", words, prompts=prompts, seeds=(0, 1), steps=8, repeats=6, out=out)


def take(notebooks: Notebooks, name: str, theme: str, folder: Path) -> int:
    """Take the pictures of one panel in one theme; return how many."""
    cell, selector, look = PANELS[name]
    page = notebooks.open([START, cell], theme=theme, width=1280, height=HEIGHT)
    panel = page.locator(selector).last
    count = 0
    for state, what in look(page, panel):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT if state != "full" else 1000})
            if state == "full":  # it takes the size of the page that it is opened on
                page.keyboard.press("Escape")
                page.keyboard.press("Enter")
            page.mouse.move(0, 0)
            page.evaluate("new Promise(f => setTimeout(() => requestAnimationFrame(f), 300))")
            stem = "-".join(filter(None, (name, state, str(width), theme)))
            what.screenshot(path=str(folder / f"{stem}.png"))
            count += 1
        page.set_viewport_size({"width": 1280, "height": HEIGHT})
    return count


def main() -> int:
    """Take them all; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--only", action="append", choices=PANELS, metavar="NAME")
    parser.add_argument("--themes", default="light,dark")
    parser.add_argument("--runs", type=Path, help="folder of the runs to show; else they are made")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    troubles: list[str] = []
    runs = chosen.runs or chosen.folder / "runs"
    make_runs(runs)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = start_browser(playwright, chosen.chromium, Path(place) / "profile")
        server = Server(Path(place))
        shutil.copytree(runs, server.root / "runs")
        try:
            for name in chosen.only or PANELS:
                for theme in chosen.themes.split(","):
                    notebooks = Notebooks(server, browser)
                    count = take(notebooks, name, theme, chosen.folder)
                    notebooks.close()
                    troubles += notebooks.troubles
                    print(f"{name}, {theme}: {count} pictures", flush=True)
        finally:
            server.stop()
            browser.close()
    print("\n".join(troubles))
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
