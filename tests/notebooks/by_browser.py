"""Run the tutorials as a reader does: `quantolab lab`, JupyterLab in Chromium, Run All, the panel.

``python tests/notebooks/by_browser.py [--quantolab COMMAND] [--shots FOLDER] [NAME ...]`` takes the
notebooks of that installation as they are, in an empty folder, and says how long each took. Any
error in a cell or in the page, and any request that leaves the machine, ends it with status 1.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, Playwright, expect, sync_playwright

sys.path.append(str(Path(__file__).resolve().parents[1] / "browser"))

from conftest import FLAGS, run_all, wait_for_kernel

PATIENCE = 600_000  # milliseconds
ERROR = "[data-mime-type='application/vnd.jupyter.error']"
# An error ends Run All, and the cells after it never get a number.
END = f'document.querySelector("{ERROR}") !== null'

NOTE_CHANGES = """node => new MutationObserver(() => { node.dataset.changed = "yes"; })
    .observe(node, {childList: true, subtree: true})"""


def _fill(page: Page, label: str, text: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Tab")


def _explore(page: Page) -> None:
    for label, text in (("Steps", "2"), ("Rounds", "1")):
        _fill(page, label, text)
    page.locator(".ql-run").click()
    expect(page.locator(".ql-cancel")).to_be_enabled()  # it runs, seconds long
    expect(page.locator(".ql-status")).to_contain_text("Done: 5 trials")
    page.locator(".ql-panel").get_by_role("tab", name="Table").click()
    expect(page.locator(".ql-panel .ql-table tbody th")).to_have_count(5)


def _skip(page: Page) -> None:
    chips = page.locator(".ql-skip-explorer .ql-chip")
    expect(chips).to_have_count(1)
    page.get_by_label("Find layers").fill("x_embedder")
    page.get_by_label("Find layers").press("Enter")
    expect(chips).to_have_count(2)


def _load_file(page: Page) -> None:
    panel = page.locator(".ql-single-file")
    status = panel.locator(".ql-status")
    status.evaluate(NOTE_CHANGES)  # it may say "Loaded" already, and again in no time
    panel.get_by_role("button", name="Load", exact=True).click()
    expect(status).to_have_attribute("data-changed", "yes")
    expect(status).to_contain_text("Loaded in")


def _verify(page: Page) -> None:
    panel = page.locator(".ql-save")
    panel.get_by_role("button", name="Verify").click()
    expect(panel.locator(".ql-status")).to_contain_text("everything that was compared is equal")


def _compile(page: Page) -> None:
    panel = page.locator(".ql-compile")
    for label, text in (("Steps", "1"), ("Repeats", "1")):
        _fill(page, label, text)
    panel.get_by_label("none", exact=True).uncheck()
    panel.get_by_role("button", name="Run", exact=True).click()
    expect(panel.locator(".ql-status")).to_contain_text("Finished: 1 of 1 compiled")


USES: dict[str, Callable[[Page], None]] = {
    "00_start_here": _explore,
    "01_skipping": _skip,
    "02_single_file": _load_file,
    "03_saving": _verify,
    "04_compile": _compile,
    "05_your_own_model": _explore,
}


@contextmanager
def serving(quantolab: str, place: str) -> Iterator[tuple[str, str]]:
    """Have `quantolab lab` serve an empty folder; yield its address and token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    own = {
        name: f"{place}/{name}"
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    }
    # JupyterLab leaves cells that are out of sight out of the page, and their numbers with them.
    settings = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    process = subprocess.Popen(
        [quantolab, "lab", "--no-browser", "--port", str(port)],
        cwd=place,
        env=os.environ | own | {"JUPYTER_TOKEN": token, "XDG_CACHE_HOME": f"{place}/cache"},
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=60).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address, token
    finally:
        process.terminate()
        process.wait(30)


def read(playwright: Playwright, chromium: str, address: str, token: str, name: str, shots) -> str:
    """Open a notebook, run all of it, use its panel; return what went wrong, or nothing."""
    browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))

    def refuse(route) -> None:
        wrong.append(f"left the machine: {route.request.url[:100]}")
        route.abort()

    page.route(lambda url: not url.startswith((address, "data:", "blob:")), refuse)
    page.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset", wait_until="domcontentloaded")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    wait_for_kernel(page)
    run_all(page, ends=END)
    wrong += page.locator(ERROR).all_inner_texts()
    if not wrong and name in USES:  # some have no panel that is there to be used
        USES[name](page)
    if shots:
        page.locator(".ql-panel, .jp-Notebook").last.screenshot(path=f"{shots}/{name}.png")
    browser.close()
    return "\n".join(wrong)


def main() -> int:
    """Go through the notebooks; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a notebook; by default all")
    parser.add_argument("--quantolab", default="quantolab", help="the command to start")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--shots", help="folder for a picture of each panel")
    chosen = parser.parse_args()
    expect.set_options(timeout=PATIENCE)
    failed = 0
    with (
        tempfile.TemporaryDirectory(prefix="quantolab-lab-") as place,
        serving(chosen.quantolab, place) as (address, token),
        sync_playwright() as playwright,
    ):
        for name in chosen.names or USES:
            began = time.monotonic()
            wrong = read(playwright, chosen.chromium, address, token, name, chosen.shots)
            failed += bool(wrong)
            said = re.sub(r"(?m)^", "    ", wrong) if wrong else "ok"
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{name}: {said}, {took}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
