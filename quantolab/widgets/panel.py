"""What every panel is made of: title, status line, progress, errors that show, the same by code.

A panel is state plus wiring: its controls fill in the arguments of one library call, `call` says
which, and the call runs in the background.
"""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import anywidget
import ipywidgets as W
import traitlets
from IPython.display import HTML, display

from ..errors import QuantolabError
from ..units import format_percent
from .assets import asset
from .background import Work


class _Heading(anywidget.AnyWidget):
    """A panel's title, and with it what holds for all of it: the style, and whose the keys are."""

    _esm = asset("shared.js", "heading.js")
    _css = asset("panel.css")

    title = traitlets.Unicode().tag(sync=True)


class Panel(W.VBox):
    """Base of the panels.

    Parameters
    ----------
    name : str
        Short name; the panel carries the CSS class ``ql-NAME`` besides ``ql-panel``.
    title : str
        Shown at the top.
    """

    def __init__(self, name: str, title: str) -> None:
        self.work = Work()
        self.status = W.HTML()
        self.status.add_class("ql-status")
        self.progress = W.HTML()
        self.progress.add_class("ql-progress")
        self.error = W.HTML()
        self.error.add_class("ql-error")
        self._code = W.HTML()
        self._code.add_class("ql-code")
        self.heading = _Heading(title=title)
        self._static = None
        super().__init__()
        self.add_class("ql-panel")
        self.add_class(f"ql-{name}")

    def fill(self, parts: Iterable[W.Widget], results: Iterable[W.Widget] = ()) -> None:
        """Put the parts under the title, and what comes of them under status and errors."""
        self.children = (
            self.heading, *parts, self.status, self.progress, self.error, *results, self._code,
        )  # fmt: skip
        self.refresh()

    # --- what panels define ---

    @property
    def call(self) -> str:
        """The library call that does what the panel would do now."""
        raise NotImplementedError

    def static_html(self) -> str:
        """Return what is shown where no kernel is alive; by default the call."""
        return f"<pre>{html.escape(self.call)}</pre>"

    # --- what they use ---

    def refresh(self) -> None:
        """Show the call that belongs to the controls as they stand."""
        try:
            code = html.escape(self.call)
        except QuantolabError as error:
            code = html.escape(f"# {error}")
        self._code.value = (
            f"<details><summary>The same by code</summary><pre>{code}</pre></details>"
        )

    def guarded(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler whose errors are shown in the panel instead of being lost."""

        @functools.wraps(handler)
        def safe(*arguments: Any) -> Any:
            try:
                return handler(*arguments)
            except Exception as error:
                self.show_error(error)

        return safe

    def on_click(self, button: W.Button, handler: Callable[[], Any]) -> None:
        """Call `handler` on each click; errors show in the panel."""
        button.on_click(self.guarded(lambda _: handler()))

    def on_change(self, controls: Iterable[W.Widget], handler: Callable[[], Any]) -> None:
        """Call `handler` when the value of any control changes; errors show in the panel."""
        for control in controls:
            control.observe(self.guarded(lambda _: handler()), "value")

    def say(self, text: str) -> None:
        """Set the status line."""
        self.status.value = f"<span role='status'>{html.escape(text)}</span>"

    def show_progress(self, done: int, total: int, text: str = "") -> None:
        """Set the progress bar; a total of 0 takes it away."""
        if not total:
            self.progress.value = ""
            return
        share = min(1.0, done / total)
        self.progress.value = (
            f"<div class='ql-bar' role='progressbar' aria-valuemin='0' aria-valuemax='{total}' "
            f"aria-valuenow='{done}'><div style='width:{format_percent(share, 1, '')}'></div></div>"
            f"<span class='ql-bar-text'>{html.escape(text)}</span>"
        )

    def show_error(self, error: BaseException | None) -> None:
        """Show an error, with its traceback if it is not one of ours; None takes it away."""
        if error is None:
            self.error.value = ""
            return
        text = html.escape(str(error) or type(error).__name__)
        if not isinstance(error, QuantolabError):
            trace = html.escape("".join(traceback.format_exception(error)))
            text = f"{type(error).__name__}: {text}<details><summary>Details</summary>"
            text += f"<pre>{trace}</pre></details>"
        self.error.value = f"<div role='alert'>{text}</div>"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; return whether that came true in `timeout` seconds."""
        return self.work.wait(timeout)

    # --- how it is shown ---

    def _ipython_display_(self) -> None:
        # The static twin is an output of its own, which panel.css hides as long as the panel is
        # alive: renewing it does not touch the panel, so the keyboard's focus stays where it is.
        display(self._repr_mimebundle_(), raw=True)
        self._static = display(self._static_output(), display_id=True)

    def refresh_static(self) -> None:
        """Renew what is shown where no kernel is alive."""
        if self._static is not None:
            self._static.update(self._static_output())

    def _static_output(self) -> HTML:
        return HTML(f"<div class='ql-static'>{self.static_html()}</div>")
