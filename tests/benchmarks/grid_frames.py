"""How long a grid of 40 large pictures takes to show, and how long its handlers take a frame.

    python tests/benchmarks/grid_frames.py [--size 1024] [--width 1800] [--at-once]

Opens a picture viewer of 8 prompts by 5 recipes in JupyterLab and Chromium, at a comparison of two
pictures. Prints milliseconds from a click on the grid's tab to the frame in which every picture in
sight is drawn, and to that in which all are sharp; with --at-once, the click comes while the kernel
still compares the two, for the first time. And, from the browser's own trace, the longest handlers
and animation frames while one picture is zoomed by the wheel, dragged and moved by keys. Aims: 300
ms, 16 ms a frame.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from conftest import PATIENCE, Notebooks, Server, start_browser

CELL = """
import pathlib, tempfile
import numpy as np
from PIL import Image
import quantolab as ql
from quantolab.recipes import Recipe
from quantolab.records import Comparison, Trial, Workload
from quantolab.widgets.pictures import PictureViewer

prompts = tuple(f"{n} foxes" for n in range(8))
workload = Workload("demo", prompts, (0,), 1, None, (SIZE, SIZE), "bfloat16", "cpu", 1)
trials = tuple(Trial(Recipe(w), "ok") for w in ("none", "float8", "int8", "int4", "int2"))
noise = np.random.default_rng(0)
ramp = np.linspace(0, 220, SIZE, dtype="float32")
def picture():
    made = ramp[:, None, None] * noise.random(3) + ramp[None, :, None] * noise.random(3)
    return Image.fromarray((made / 2).astype("uint8"))
images = {(t.label, p, 0): picture() for t in trials for p in prompts}
folder = pathlib.Path(tempfile.mkdtemp()) / "run"
ql.save_comparison(Comparison(workload, trials, images), folder)
viewer = PictureViewer(ql.load_comparison(folder))
viewer.mode = "compare"
viewer
"""

SHOWN = """(least) => new Promise((done) => {
    const began = performance.now();
    document.querySelector(".ql-tab-grid").click();
    const box = () => document.querySelector(".ql-scroller").getBoundingClientRect();
    const inSight = (image) => {
        const { top, bottom } = image.getBoundingClientRect();
        return bottom > box().top && top < Math.min(box().bottom, innerHeight);
    };
    let first = null;
    const look = () => {
        const seen = [...document.querySelectorAll(".ql-cell img")].filter(inSight);
        const all = (test) => seen.length > 0 && seen.every(test);
        const now = performance.now() - began;
        if (first === null && all((i) => i.complete && i.naturalWidth > 0)) first = now;
        if (first !== null && all((i) => i.naturalWidth >= least || i.naturalWidth >= i.width)) {
            done({ first, sharp: now, pictures: seen.length });
        } else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
})"""


def traced(page, act) -> dict[str, list[float]]:
    """Return milliseconds of each handler and animation frame while something is done."""
    client, events = page.context.new_cdp_session(page), []
    client.on("Tracing.dataCollected", lambda data: events.extend(data["value"]))
    complete = []
    client.on("Tracing.tracingComplete", lambda _: complete.append(True))
    client.send(
        "Tracing.start", {"categories": "devtools.timeline", "transferMode": "ReportEvents"}
    )
    act()
    client.send("Tracing.end")
    while not complete:
        page.wait_for_timeout(50)
    took: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name")
        if name == "EventDispatch":
            name = event["args"]["data"]["type"]
        elif name not in ("FireAnimationFrame", "Layout", "Paint"):
            continue
        if "dur" in event:
            took[name].append(event["dur"] / 1000)
    return took


def zoom_and_pan(page) -> None:
    """Zoom a picture by the wheel, drag it, move it by keys."""
    box = page.locator(".ql-full-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    for _ in range(10):
        page.mouse.wheel(0, -120)
    page.mouse.down()
    for step in range(40):
        page.mouse.move(x + 3 * step, y + 2 * step)
    page.mouse.up()
    for key in ("Shift+ArrowLeft", "Shift+ArrowUp", "+", "-") * 3:
        page.keyboard.press(key)
    page.wait_for_timeout(200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1800)
    parser.add_argument("--at-once", action="store_true")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    asked = parser.parse_args()
    expect.set_options(timeout=PATIENCE)
    folder = Path(tempfile.mkdtemp())
    server = Server(folder)
    try:
        with sync_playwright() as playwright:
            browser = start_browser(playwright, asked.chromium, folder / "profile")
            notebooks = Notebooks(server, browser)
            page = notebooks.open([CELL.replace("SIZE", str(asked.size))], width=asked.width)
            if not asked.at_once:
                expect(page.locator(".ql-viewer .ql-fact", has_text="SSIM").first).to_be_visible()
            expect(page.locator(".ql-stages")).to_be_visible()
            shown = page.evaluate(SHOWN, 320)
            sys.stdout.write(f"click to shown, ms: {json.dumps(shown)}\n")
            sys.stdout.flush()
            page.locator(".ql-cell").first.click()
            expect(page.locator(".ql-full-foot .ql-quiet").first).to_have_text("")
            took = traced(page, lambda: zoom_and_pan(page))
            for name, each in sorted(took.items()):
                middle = sorted(each)[len(each) // 2]
                said = f"{len(each):4} times, median {middle:.2f} ms, longest {max(each):.2f} ms"
                sys.stdout.write(f"{name:20} {said}\n")
            notebooks.close()
            browser.close()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
