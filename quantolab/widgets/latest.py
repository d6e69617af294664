"""The newest of several jobs in the background: what older ones would still say is dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Latest:
    """Looks something up whenever a control changes; only the last answer counts.

    Other than with `Work`, a job may be started while another one runs, and none is cancelled.

    Parameters
    ----------
    lock : threading.RLock, optional
        Held while an answer is given; its owner may hold it to change what belongs together.
    """

    def __init__(self, lock: Any = None) -> None:
        self.lock = lock or threading.RLock()
        self._thread: threading.Thread | None = None

    def start(
        self,
        job: Callable[[], Any],
        *,
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Call `job` in a thread, then, unless a newer one was started, one of the others."""

        def run() -> None:
            try:
                value = job()
            except Exception as error:
                self._answer(failed, error)
                return
            try:
                self._answer(done, value)
            except Exception as error:  # what a panel makes of the value
                self._answer(failed, error)

        with self.lock:
            self._thread = threading.Thread(target=run, name="quantolab look-up", daemon=True)
            self._thread.start()

    def forget(self) -> None:
        """Drop what a running job would still say."""
        with self.lock:
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether an answer is still to come."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the newest job; return whether it has answered in `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def _answer(self, answer: Callable[[Any], None], value: Any) -> None:
        with self.lock:
            if threading.current_thread() is self._thread:
                answer(value)
