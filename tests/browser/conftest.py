"""A Jupyter server and Chromium, for tests that use a panel as a person does.

A test takes `notebooks` and opens cells of its own::

    @pytest.mark.browser
    def test_x(notebooks):
        page = notebooks.open(["from quantolab import widgets", "widgets.explorer()"])
        page.locator(".ql-run button").click()
        expect(page.locator(".ql-status")).to_have_text("done")

Every cell has run when `open` returns. A test fails on any error in the page's scripts, and on any
request that leaves the machine. Nothing sleeps: wait for what is to be seen, with `expect`.

Environment variables: with QUANTOLAB_BROWSER=required a missing browser is a failure and not a
skip; QUANTOLAB_SHOTS names a folder for screenshots.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from forked_kernel import kernel_spec
from jupyter_client import BlockingKernelClient
from playwright.sync_api import BrowserContext, Page, Playwright, expect, sync_playwright

PATIENCE = 240_000  # milliseconds: machines under load are slow, and patience costs nothing
LOOK_AGAIN = 100  # milliseconds; by itself, Playwright looks at every frame, and has them drawn
VOILAS_OWN = ("fontawesome", "font-awesome", "mathjax")  # Voila's page asks for these itself
ERROR = "[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg"  # of a cell that raised
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# An error where jobs are at work: a kernel that is at something is no empty one.
SHARED = str(Path(__file__).parents[1] / "shared")
EMPTY = """
import os, sys, ipywidgets
sys.path.append({shared!r})
from zygote import servers
sys.path.pop()
ipywidgets.Widget.close_all()
os.chdir({folder!r})
os.environ.pop("XDG_CACHE_HOME", None)  # which tests set
assert not [job for server in servers() for job in server.children()]
get_ipython().run_line_magic("reset", "-f")
"""
LOOK = {"reduced_motion": "reduce"}  # nobody waits for what moves, and drawing takes a processor
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    # Nothing leaves the machine: what isn't on it is asked of a proxy, and there is none. Requests
    # that Playwright lets a test decide on would have the browser keep no file of JupyterLab's.
    "--proxy-server=127.0.0.1:9",
)  # fmt: skip


# --- what there must be -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium; without it the test is skipped, or fails where a browser is required."""
    names = ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = "there is no Chromium to drive: no chromium on the PATH"
        if os.environ.get("QUANTOLAB_BROWSER") == "required":
            pytest.fail(f"{reason}, and QUANTOLAB_BROWSER=required", pytrace=False)
        pytest.skip(reason)
    return path


# --- the server -------------------------------------------------------------------------------


class Server:
    """One JupyterLab with folders of its own, which serves Notebook and Voila too."""

    def __init__(self, folder: Path) -> None:
        self._kernel: str | None = None
        self.root = folder / "notebooks"
        self._config = folder / "config"
        self.root.mkdir()
        kernel = self._config / "data/kernels/python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(kernel_spec()))
        self._settings({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "server.log").open("w+")
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                f"--ServerApp.root_dir={self.root}", "--LabApp.extension_manager=readonly",
            ],
            env=os.environ | self._folders(), stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _folders(self) -> dict[str, str]:
        config = str(self._config)
        return {
            "JUPYTER_CONFIG_DIR": config,
            "JUPYTER_DATA_DIR": f"{config}/data",
            "JUPYTER_PATH": f"{config}/data",  # before what is installed
            "JUPYTER_RUNTIME_DIR": f"{config}/run",
            "IPYTHONDIR": f"{config}/ipython",
            "JUPYTERLAB_SETTINGS_DIR": f"{config}/lab/user-settings",
            "JUPYTERLAB_WORKSPACES_DIR": f"{config}/lab/workspaces",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }

    def _settings(self, notification: dict) -> None:
        self._folder = self._config / "lab/user-settings/@jupyterlab/apputils-extension"
        self._folder.mkdir(parents=True)
        text = json.dumps(notification)
        (self._folder / "notification.jupyterlab-settings").write_text(text)

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE / 1000
        while True:
            with suppress(urllib.error.URLError, OSError):
                self.ask("GET", "status")
                return
            if self._process.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                raise RuntimeError("Jupyter did not start:\n" + self._log.read()[-3000:])
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)

    def ask(self, method: str, what: str, body: dict | None = None) -> bytes:
        """Return what the server's own interface answers."""
        request = urllib.request.Request(
            f"{self.url}/api/{what}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def use_theme(self, theme: str) -> None:
        """Choose the theme of pages that are opened from now on."""
        text = json.dumps({"theme": THEMES[theme]})
        (self._folder / "themes.jupyterlab-settings").write_text(text)

    def lend_kernel(self, notebook: str) -> None:
        """Give a notebook the one kernel, which has imported already what panels need."""
        if self._kernel is None:
            here = {"name": "python3", "path": ""}  # in the notebooks' folder
            self._kernel = json.loads(self.ask("POST", "kernels", here))["id"]
        session = {"path": notebook, "name": notebook, "type": "notebook"}
        self.ask("POST", "sessions", {**session, "kernel": {"id": self._kernel}})

    def tidy(self, *, keep: bool = True) -> None:
        """Leave nothing to the next test but a kernel in which nothing is; end all others."""
        if self._kernel is not None and not (keep and self._is_empty(self._kernel)):
            self._kernel = None
        for kernel in json.loads(self.ask("GET", "kernels")):
            if kernel["id"] != self._kernel:
                self.ask("DELETE", f"kernels/{kernel['id']}")

    def _is_empty(self, kernel: str) -> bool:
        """Make a kernel forget what was done in it; return whether it could, and nothing works."""
        client = BlockingKernelClient()
        client.load_connection_file(str(self._config / f"run/kernel-{kernel}.json"))
        client.start_channels()
        try:
            code = EMPTY.format(folder=str(self.root), shared=SHARED)
            answer = client.execute_interactive(code, timeout=10, output_hook=lambda _: None)
        except (TimeoutError, RuntimeError):  # it is busy, or was killed
            return False
        finally:
            client.stop_channels()
        return answer["content"]["status"] == "ok"

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture(scope="session")
def server(chromium, tmp_path_factory):
    """One server for all browser tests: starting it takes longer than most of them."""
    running = Server(tmp_path_factory.mktemp("jupyter"))
    yield running
    running.stop()


def start_browser(playwright: Playwright, path: str, profile: Path) -> BrowserContext:
    """Start Chromium with a profile, which holds JupyterLab's scripts compiled.

    So it opens notebooks in two thirds of the time, from the second on: a browser's windows
    without a profile compile every script anew.
    """
    return playwright.chromium.launch_persistent_context(
        profile, executable_path=path, headless=True, args=list(FLAGS), **LOOK
    )


# Not for the whole session: as long as Playwright runs, its event loop runs in this thread, and
# tests elsewhere that start one of their own (notebooks through nbclient) could not.
@pytest.fixture(scope="module")
def browser(chromium, server, tmp_path_factory):
    """One Chromium, and one kernel, for the tests of a file."""
    profile = tmp_path_factory.getbasetemp() / "profile"  # one file's tests after the other's
    with sync_playwright() as playwright:
        started = start_browser(playwright, chromium, profile)
        yield started
        started.close()
    server.tidy(keep=False)  # tests elsewhere look for processes of their own


# --- notebooks --------------------------------------------------------------------------------


class Notebooks:
    """Opens notebooks in new windows and remembers what went wrong in them."""

    def __init__(self, server: Server, browser: BrowserContext) -> None:
        self.server = server
        self.troubles: list[str] = []
        self._browser = browser
        self._pages: list[Page] = []

    def open(
        self,
        cells: list[str],
        *,
        app: str = "lab",
        theme: str = "light",
        run: bool = True,
        width: int = 1280,
        height: int = 1000,
        touch: bool = False,
    ) -> Page:
        """Write a notebook, open it and run every cell; return Playwright's page.

        Parameters
        ----------
        cells : list of str
            Code. Hidden once it has run, so that screenshots show what came out.
        app : str
            ``"lab"``, ``"notebook"`` (Notebook 7) or ``"voila"``, which runs cells by itself.
        theme : str
            ``"light"`` or ``"dark"``.
        run : bool
            Whether to run the cells; an error in one fails the test.
        width, height : int
            Of the window, in CSS pixels.
        touch : bool
            Whether the window is a touch screen.
        """
        name = self.write(cells)
        if app != "voila":  # which starts its own
            self.server.lend_kernel(name)
        self.server.use_theme(theme)
        page = self._window(width, height, touch, app)
        if app == "voila":
            page.goto(self._address("voila/render", name, f"theme={theme}"))
            return page
        # A workspace of its own, so that nothing of an earlier test is restored.
        place = f"doc/workspaces/auto-{Path(name).stem}/tree" if app == "lab" else "notebooks"
        page.goto(self._address(place, name, "reset"), wait_until="domcontentloaded")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        wait_for_kernel(page)
        if run:
            run_all(page)
            # Said at once: whatever a test waits for would never come.
            errors = page.locator(ERROR)
            assert errors.count() == 0, " ".join(errors.all_inner_texts())
            # Not by the notebook's own "source hidden", which puts other elements there.
            page.add_style_tag(content=".jp-Cell-inputWrapper { display: none !important }")
        return page

    def write(self, cells: list[str]) -> str:
        """Write a notebook of these cells; return its name."""
        made = [nbformat.v4.new_code_cell(cell) for cell in cells]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})
        name = f"{secrets.token_hex(4)}.ipynb"
        nbformat.write(notebook, self.server.root / name)
        return name

    def close(self) -> None:
        """Close all windows and empty the kernel."""
        for page in self._pages:
            page.close()
        self.server.tidy()

    def _address(self, place: str, name: str, query: str) -> str:
        return f"{self.server.url}/{place}/{name}?token={self.server.token}&{query}"

    def _window(self, width: int, height: int, touch: bool, app: str) -> Page:
        size = {"width": width, "height": height}
        if touch:  # only a window without the profile can be a touch screen
            browser = self._browser.browser
            page = browser.new_page(viewport=size, has_touch=True, **LOOK)
        else:
            page = self._browser.new_page()
            page.set_viewport_size(size)
        page.set_default_timeout(PATIENCE)
        self._pages.append(page)
        page.on("pageerror", lambda error: self._note_error(error, app))
        page.on("request", lambda request: self._note_request(request.url, app))
        return page

    def _note_error(self, error, app: str) -> None:
        # Notebook 7 itself fails at some of JupyterLab's settings. A widget's script is a blob.
        if app == "lab" or "blob:" in (error.stack or ""):
            self.troubles.append(f"script error: {error}")

    def _note_request(self, url: str, app: str) -> None:
        if url.startswith((self.server.url, "data:", "blob:")):
            return
        if app != "voila" or not any(name in url.casefold() for name in VOILAS_OWN):
            self.troubles.append(f"left the machine: {url[:100]}")


@pytest.fixture
def notebooks(server, browser):
    """Open notebooks; fail if a script in them did, or asked for something from elsewhere."""
    expect.set_options(timeout=PATIENCE)
    opened = Notebooks(server, browser)
    yield opened
    opened.close()
    assert opened.troubles == []


def wait_for_kernel(page: Page) -> None:
    """Wait until a kernel is there and idle.

    The indicator says "idle" also while there is no kernel at all, and Run All is then dropped
    without a word. So both are asked: a kernel's name, and idle.
    """
    page.wait_for_function(
        """() => {
        const panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
        const name = panel?.querySelector('.jp-Toolbar-kernelName')?.textContent.trim();
        const state = panel?.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;
        return name && name !== 'No Kernel' && state === 'idle' }""",
        polling=LOOK_AGAIN,
    )


def run_all(page: Page, ends: str = "false") -> None:
    """Run all cells through the menu; wait until each has a number, one raised, or `ends`."""
    page.locator(".jp-Notebook .jp-InputPrompt").first.click()
    page.locator(".lm-MenuBar-item >> text=/^Run$/").click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    page.wait_for_function(
        f"""() => {{
        const cells = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
        const done = cells.length && cells.every(cell => /\\[\\d+\\]/.test(cell.textContent));
        return done || document.querySelector(`{ERROR}`) || {ends} }}""",
        polling=LOOK_AGAIN,
    )
    wait_for_kernel(page)


@pytest.fixture
def press():
    """Return a function that presses a key on an element once it is enabled.

    Of a button that the kernel hasn't enabled yet, a browser drops the key.
    """

    def strike(what, key: str = "Enter") -> None:
        expect(what).to_be_enabled()
        what.press(key)

    return strike


@pytest.fixture
def shoot():
    """Return a function that keeps a picture of a page or of one element, if asked for.

    ``shoot(page.locator(".ql-grid"), "grid-dark")`` writes grid-dark.png into QUANTOLAB_SHOTS.
    """
    folder = os.environ.get("QUANTOLAB_SHOTS")

    def keep(what, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            what.screenshot(path=str(Path(folder) / f"{name}.png"))

    return keep
