"""One job at a time in a thread, so that the kernel stays free and the job can be ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..errors import ArgumentError
from ..run.children import Cancelled


class Work:
    """Runs jobs in the background, one at a time.

    Widgets' callbacks must return at once: while one runs, no other click is heard.
    """

    def __init__(self) -> None:
        self.cancel_asked = threading.Event()
        """Handed to the library call; set when the user cancels."""
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether a job is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        job: Callable[[], Any],
        *,
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        cancelled: Callable[[], None],
    ) -> None:
        """Call `job` in a thread, then one of the three others with what came of it, there too.

        Raises
        ------
        ArgumentError
            If a job is under way.
        """
        if self.running:
            raise ArgumentError("this panel is at work; cancel it or wait until it has finished")
        self.cancel_asked.clear()

        def run() -> None:
            try:
                value = job()
            except Cancelled:
                cancelled()
            except BaseException as error:
                failed(error)
            else:
                try:
                    done(value)
                except BaseException as error:
                    failed(error)

        # A daemon: a kernel that is shut down does not wait for it.
        self._thread = threading.Thread(target=run, name="quantolab panel", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the job to end; it does so at its next look."""
        self.cancel_asked.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; whether that came true in `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running
