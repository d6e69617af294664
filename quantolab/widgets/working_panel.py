"""Panels that start library calls in the background: busy, done, failed or cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as W

from .panel import Panel

BUSY = "<div class='ql-bar ql-busy' role='progressbar' aria-label='at work'><div></div></div>"
"""A bar that moves as long as it is there: for work whose length nobody knows."""


def run_button(description: str, tooltip: str, *, primary: bool = True) -> W.Button:
    """Return a button that starts something, for tests to hold on to by its class."""
    button = W.Button(
        description=description,
        tooltip=tooltip,
        button_style="primary" if primary else "",
        layout={"width": "auto", "min_width": "90px"},
    )
    button.add_class("ql-run")
    return button


class WorkingPanel(Panel):
    """A panel with buttons that start one job at a time.

    Parameters
    ----------
    name, title : str
        As for `Panel`.
    """

    def __init__(self, name: str, title: str) -> None:
        super().__init__(name, title)
        self.cancel_button = W.Button(
            description="Cancel", disabled=True, layout={"width": "auto", "min_width": "90px"}
        )
        self.cancel_button.add_class("ql-cancel")
        self._starters: dict[W.Button, Callable[[], Any]] = {}
        self._can_cancel = False
        self.on_click(self.cancel_button, self.cancel)

    def add_starter(self, button: W.Button, handler: Callable[[], Any]) -> W.Button:
        """Let a button start something; it is off while anything runs."""
        self._starters[button] = handler
        self.on_click(button, handler)
        return button

    def begin(
        self,
        doing: str,
        job: Callable[[], Any],
        done: Callable[[Any], None],
        *,
        can_cancel: bool = False,
    ) -> None:
        """Run a job in the background and give `done` what it returned, in that thread.

        Parameters
        ----------
        doing : str
            What the job does, in the status line meanwhile.
        job : callable
            The library call.
        done : callable
            Shows what came of it.
        can_cancel : bool
            Whether the call looks at ``work.cancel_asked``.

        Raises
        ------
        ArgumentError
            If a job is under way.
        """
        if not self.work.running:  # else starting it raises
            self.show_error(None)
            self.say(f"{doing}…" if can_cancel else f"{doing}… (once begun, it runs to its end)")
            self._show_running(True, can_cancel)
        self.work.start(
            job,
            done=lambda value: self._ended(done, value),
            failed=lambda error: self._ended(self._show_failure, error),
            cancelled=lambda: self._ended(lambda _: self.say("Cancelled."), None),
            last=lambda: self._show_running(False),
        )

    def cancel(self) -> None:
        """Ask what runs to end, if it can be ended."""
        if not self.work.running:
            return
        if not self._can_cancel:
            self.say("This can't be cancelled once it has begun; it runs to its end.")
            return
        if self.work.cancel():
            self.cancel_button.disabled = True
            self.say("Cancelling…")

    def _ended(self, show: Callable[[Any], None], value: Any) -> None:
        self.cancel_button.disabled = True
        self.progress.value = ""
        show(value)
        self.refresh_static()

    def _show_failure(self, error: BaseException) -> None:
        self.say("That didn't work; the reason stands below.")
        self.show_error(error)

    def _show_running(self, running: bool, can_cancel: bool = False) -> None:
        self._can_cancel = running and can_cancel
        self.cancel_button.disabled = not self._can_cancel
        for button in self._starters:
            button.disabled = running
        self.progress.value = BUSY if running else ""
