"""Jobs in threads, so that the kernel stays free; and a process for what needs torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..errors import ArgumentError, Cancelled
from ..files.whole import scratch_folder
from ..processes.children import STALL_SECONDS, Children
from ..processes.jobs import Asked, Event, Found, JobKind, Preload


class Work:
    """Runs jobs in the background, one at a time.

    Widgets' callbacks must return at once: while one runs, no other click is heard.
    """

    def __init__(self) -> None:
        self.cancel_asked = threading.Event()
        """Handed to the library call; set when the user cancels."""
        self.running = False
        """Whether a job is under way, or what came of it is still being shown."""
        self._job_runs = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(
        self,
        job: Callable[[], Any],
        *,
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        cancelled: Callable[[], None],
        last: Callable[[], None],
    ) -> None:
        """Call `job` in a thread, then one of three others with what came of it, there too.

        At the very end, when the next job may be started, `last` is called: what lets a user
        start one belongs there, or a quick click would be refused.

        Raises
        ------
        ArgumentError
            If a job is under way.
        """

        def run() -> None:
            try:
                try:
                    value = self._do(job)
                except Cancelled:
                    cancelled()
                else:
                    done(value)
            except BaseException as error:
                failed(error)
            finally:
                self.running = False
                last()

        with self._lock:
            if self.running:
                raise ArgumentError(
                    "this panel is at work; cancel it or wait until it has finished"
                )
            self.cancel_asked.clear()
            self.running = self._job_runs = True
            # A daemon: a kernel that is shut down does not wait for it.
            self._thread = threading.Thread(target=run, name="quantolab panel", daemon=True)
            self._thread.start()

    def _do(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        finally:
            self._job_runs = False

    def cancel(self) -> bool:
        """Ask the job to end at its next look; False if it has ended, or was asked before."""
        if not self._job_runs or self.cancel_asked.is_set():
            return False
        self.cancel_asked.set()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; whether that came true in `timeout` seconds."""
        with self._lock:  # a thread that hasn't started can't be waited for
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()


class Assistant:
    """A process beside the kernel for small jobs that need torch, which the kernel never loads.

    It starts with the first job and ends when none has come for a while.

    Parameters
    ----------
    idle_seconds : float
        After how long without a job it ends.
    """

    def __init__(self, idle_seconds: float = 60.0) -> None:
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._children: Children | None = None
        self._preload = Preload()
        self._busy = 0
        self._timer: threading.Timer | None = None

    def do(
        self,
        kind: JobKind[Asked, Found],
        asked: Asked,
        *,
        preload: Preload = Preload(),  # noqa: B008 - frozen
        watch: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> Found:
        """Do a job and return what it found; to be called in a thread.

        Parameters
        ----------
        kind : JobKind
            Which job.
        asked : record
            What it takes.
        preload : Preload
            What the job will need, imported once for it and those that follow.
        watch : callable
            Takes each event of the job, in this thread.
        cancel : threading.Event, optional
            Set it to end the job.
        stall_seconds : float
            A job that shows no sign of life for so long is ended as hung.

        Raises
        ------
        QuantolabError
            What the job raised, `JobFailed` if its process ended without a result, `Cancelled`
            if `cancel` was set.
        """
        children = self._begin(preload)
        try:
            with scratch_folder("job") as folder:
                return children.run(
                    kind, asked, folder=folder, cancel=cancel, stall_seconds=stall_seconds
                )
        finally:
            self._end()

    def close(self) -> None:
        """End the process and the job that it does."""
        with self._lock:
            self._leave()

    def rest(self) -> None:
        """End the process unless it is at work; a later job starts another one."""
        with self._lock:
            if not self._busy:
                self._leave()

    def _begin(self, preload: Preload) -> Children:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if not self._busy and not set(preload.classes) <= set(self._preload.classes):
                self._leave()  # another model: its classes are imported ahead too
            if self._children is None:
                self._preload = preload
                self._children = Children(preload)
                self._children.__enter__()
            self._busy += 1
            return self._children

    def _end(self) -> None:
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._timer = threading.Timer(self._idle_seconds, self.rest)
                self._timer.daemon = True
                self._timer.start()

    def _leave(self) -> None:
        children, self._children = self._children, None
        if children is not None:
            children.__exit__(None, None, None)
