"""Child processes as their parent sees them: start, watch, end; what became of each.

Importing torch, Diffusers and Quanto takes seconds and happens once, in a server process that
forks a child for each job (see `server`). Where forking isn't safe (Windows, macOS) each job
gets a fresh process instead. The parent itself never imports torch.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import Cancelled, QuantolabError

_POLL_SECONDS = 0.1  # how soon Ctrl-C and cancel are heard
STALL_SECONDS = 1800.0
"""A job that shows no sign of life for so long is taken for hung."""


class JobFailed(QuantolabError):
    """A job's process ended without a result; the text says how."""


class Children:
    """A place to run jobs, each in a process of its own. Use as a context manager.

    Several threads may `run` jobs at the same time.

    Parameters
    ----------
    classes : list of (library, class name)
        What the jobs will need, imported ahead.
    fork : bool, optional
        Whether to fork children from one server; by default on Linux only.
    environment : mapping of str to str, optional
        Environment variables of the children, over those of this process.
    """

    def __init__(
        self,
        classes=(),
        fork: bool | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._classes = [list(pair) for pair in classes]
        self._fork = sys.platform == "linux" if fork is None else fork
        self._environment = dict(environment or {})
        self._server: subprocess.Popen | None = None
        self._inbox: dict[str, queue.SimpleQueue] = {}
        self._count = itertools.count(1)
        self._writing = threading.Lock()  # two requests must not mix on the server's input
        self._ready = threading.Event()

    def __enter__(self) -> Children:
        if self._fork:
            self._server = _start([json.dumps(self._classes)], self._environment)
            self._listen(self._server)
        return self

    def __exit__(self, *_) -> None:
        if self._server is not None:
            self._server.stdin.close()  # the server ends its children and itself
            if not self._ready.is_set():  # still importing: it was asked for no job yet
                self._server.kill()
            try:
                self._server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server.stdout.close()

    @property
    def ready(self) -> bool:
        """Whether the imports are done (always so for fresh processes, which pay later)."""
        return self._ready.is_set() or not self._fork

    def run(
        self,
        request: dict,
        *,
        folder: Path,
        watch: Callable[[dict], None] = lambda event: None,
        cancel: threading.Event | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> dict:
        """Do one job in a process of its own and return its result.

        Parameters
        ----------
        request : dict
            Plain values; what `jobs.run_job` takes.
        folder : Path
            A folder for the job's own files: ``result.json``, and ``log.txt`` with what the
            process prints.
        watch : callable
            Called with each event of the job, in this thread.
        cancel : threading.Event, optional
            Set it to end the job.
        stall_seconds : float
            Seconds without an event after which the job counts as hung.

        Raises
        ------
        JobFailed
            If the process crashed, was killed, hung or couldn't start.
        Cancelled
            If `cancel` was set.
        """
        job = f"{next(self._count)}"
        inbox = self._inbox[job] = queue.SimpleQueue()
        folder.mkdir(parents=True, exist_ok=True)
        log, result = folder / "log.txt", folder / "result.json"
        result.unlink(missing_ok=True)
        process = None
        try:
            self._wait_until_ready(cancel, stall_seconds)
            process = _Process(self, {**request, "job": job, "folder": str(folder)})
            heard = time.monotonic()
            while True:
                _raise_if_set(cancel)
                try:
                    event = inbox.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    event = None
                if event is None:
                    if time.monotonic() - heard > stall_seconds:
                        raise JobFailed(f"ended after {stall_seconds:.0f} s without a sign of life")
                    continue
                heard = time.monotonic()
                if event["event"] == "exited":
                    process.ended = True
                    if event["code"] != 0 or not result.is_file():
                        raise JobFailed(_how_it_ended(event["code"], log))
                    return json.loads(result.read_text())
                elif event["event"] == "started":
                    process.pid = event["pid"]
                else:
                    watch(event)
        finally:
            if process is not None:
                process.end()
            del self._inbox[job]

    def _wait_until_ready(self, cancel: threading.Event | None, stall_seconds: float) -> None:
        """Wait for the server's imports: until then it may be killed, since it has no children."""
        began = time.monotonic()
        while not self.ready:
            _raise_if_set(cancel)
            if self._server.poll() is not None:
                return  # the job says so
            if time.monotonic() - began > stall_seconds:
                raise JobFailed(f"not started after {stall_seconds:.0f} s")
            self._ready.wait(_POLL_SECONDS)

    def _listen(self, process: subprocess.Popen, job: str | None = None) -> None:
        threading.Thread(target=self._read, args=(process, job), daemon=True).start()

    def _read(self, process: subprocess.Popen, job: str | None) -> None:
        """Sort lines from a process into inboxes until it ends."""
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # not ours: a library that writes to a saved descriptor
            if event.get("event") == "ready":
                self._ready.set()
            elif (inbox := self._inbox.get(event.get("job", ""))) is not None:
                inbox.put(event)
        code = process.wait()
        if job:
            process.stdout.close()
        # A server that ends on its own takes its jobs with it.
        jobs = [job] if job else list(self._inbox)
        for name in jobs:
            if (inbox := self._inbox.get(name)) is not None:
                inbox.put({"event": "exited", "code": code, "job": name})


def _raise_if_set(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled")


class _Process:
    """One running job."""

    def __init__(self, children: Children, request: dict) -> None:
        self.pid: int | None = None
        self.ended = False
        self._own: subprocess.Popen | None = None
        line = json.dumps(request) + "\n"
        if children._server is not None:
            server = children._server
            try:
                with children._writing:
                    server.stdin.write(line)
                    server.stdin.flush()
            except (BrokenPipeError, ValueError) as error:
                raise JobFailed(
                    f"the process that starts trials is gone (exit status {server.poll()})"
                ) from error
        else:
            self._own = _start(["--once"], children._environment)
            children._listen(self._own, request["job"])
            self._own.stdin.write(json.dumps({**request, "classes": children._classes}) + "\n")
            self._own.stdin.close()
            self.pid = self._own.pid

    def end(self) -> None:
        """Kill the process and all that it started, if it still runs."""
        if self.ended or self.pid is None:
            return
        try:
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._own.kill()
        except (ProcessLookupError, PermissionError):
            pass


def _start(arguments: list[str], extra: Mapping[str, str]) -> subprocess.Popen:
    environment = {**os.environ, **extra}
    # The child imports this very quantolab, wherever it was imported from.
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    environment["TQDM_DISABLE"] = "1"
    return subprocess.Popen(
        [sys.executable, "-m", "quantolab.run.server", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _how_it_ended(code: int, log: Path) -> str:
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        why = {
            "SIGSEGV": "the process crashed (segmentation fault)",
            "SIGKILL": "the process was killed (SIGKILL), by the system for lack of memory or "
            "by somebody",
            "SIGABRT": "the process aborted (SIGABRT)",
            "SIGTERM": "the process was ended (SIGTERM)",
        }.get(name, f"the process ended by {name}")
        return why
    last = _last_line(log)
    return f"the process ended with exit status {code}" + (f": {last}" if last else "")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
