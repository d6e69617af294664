"""The process that imports torch, Diffusers and Quanto once and forks a child for each job.

Started by `children.Children`, which never imports it.
Requests come in as JSON lines on standard input, events go out as JSON lines on standard output.
It holds no model and starts no thread, so its children begin clean and cost some milliseconds.
Where they couldn't use an accelerator, because an import has begun with it, it says so, and is
asked for none.
When standard input ends (its parent is gone, even by ``kill -9``), it ends its children and
itself, while it still imports too. What a job started ends with the job.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import queue
import select
import selectors
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from ..plain_values import from_dict, to_dict
from ..quietly import uncollected
from .jobs import LOG, Event, Order, Preload, Question, run_job

_LOOK_SECONDS = 0.2  # how soon a server that imports hears that its parent is gone
_GENERATIONS = 20  # of processes that leave others behind


def main() -> None:
    """Serve jobs until standard input ends; with ``--once``, do one job in this process."""
    out = os.dup(1)
    _redirect_output(os.devnull)
    if "--once" in sys.argv:
        wanted, order = sys.stdin.readline(), sys.stdin.readline()
        # Only questions come after that: it ends when the parent does, or lets go.
        questions: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_end_with_input, args=(questions,), daemon=True).start()
        preload(from_dict(Preload, json.loads(wanted)))
        send(out, Event("ready"))
        _run(out, from_dict(Order, json.loads(order)), iter(questions.get, None))
        return
    # A terminal's Ctrl-C goes to the whole process group: the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _ending_with_parent():
        preload(from_dict(Preload, json.loads(sys.argv[1])))
    _adopt_orphans()
    send(out, Event("ready" if forks_reach_devices() else "alone"))
    _serve(out)


def _end_with_input(questions: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        questions.put(json.dumps(from_dict(Question, json.loads(line)).asks))
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)  # with all that the job started
    os._exit(70)


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    """End this process when the parent does, while the block runs. No thread is left after it."""
    over = threading.Event()

    def look() -> None:
        poll = select.poll()
        poll.register(0, 0)  # nothing is asked for but whether the other end is closed
        while not over.wait(_LOOK_SECONDS):
            if poll.poll(0):
                os._exit(70)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _adopt_orphans() -> None:
    """Become the parent of what a job started and left behind, to end it (Linux only)."""
    if sys.platform == "linux":
        set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def preload(wanted: Preload) -> None:
    """Import what jobs need. Nothing here may start threads or touch an accelerator."""
    import importlib

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks without initializing CUDA
    with uncollected():
        import torch

        for library, cls in wanted.classes:
            try:
                getattr(importlib.import_module(library), cls, None)
            except (ImportError, RuntimeError):
                pass  # the job that needs it says so
        more = () if torch.cuda.is_available() else wanted.without_cuda
        for name in (*wanted.modules, *more):
            importlib.import_module(name)
        _make_tables()
    gc.freeze()  # nor do jobs look through it: they would copy the pages that they share


def _make_tables() -> None:
    """Have transformers make its table of weights' names, which each job would make for itself."""
    if "transformers" not in sys.modules:
        return
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # there is none before transformers 5
        return
    get_checkpoint_conversion_mapping("t5")


_KINDS = ("cuda", "xpu", "mps", "mtia")  # of device, whose modules know bad forks


def forks_reach_devices() -> bool:
    """Return whether a process forked off this one may use an accelerator, found out by one.

    Some library may have asked a driver for devices while it was imported, as transformers asks
    for an XPU. That is a beginning, and torch refuses the device in every fork afterwards.
    """
    import torch

    pid = os.fork()
    if not pid:
        refused = True
        try:
            modules = (getattr(torch, kind, None) for kind in _KINDS)
            asks = (getattr(module, "_is_in_bad_fork", None) for module in modules)
            refused = any(ask() for ask in asks if ask is not None)
        finally:
            os._exit(int(refused))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def send(out: int, event: Event) -> None:
    """Write one line; lines under PIPE_BUF bytes from several processes never mix."""
    os.write(out, (json.dumps(to_dict(event)) + "\n").encode())


def _serve(out: int) -> NoReturn:
    children: dict[int, str] = {}
    questions: dict[str, int] = {}  # where each job reads them
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    pending = b""
    while True:
        for key, _ in selector.select():
            if key.fd == wake_read:
                os.read(wake_read, 4096)
                _reap(out, children, questions)
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                for pid in children:
                    _kill_group(pid)
                _end_orphans(set())
                os._exit(0)  # taking torch down in order takes over a second, for nothing
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                values = json.loads(line)
                if "asks" in values:
                    _hand_on(from_dict(Question, values), questions)
                    continue
                order = from_dict(Order, values)
                theirs, ours = os.pipe()
                own = (wake_read, wake_write, ours, *questions.values())
                children[_fork(out, order, theirs, own)] = order.job
                os.close(theirs)
                questions[order.job] = ours


def _hand_on(question: Question, questions: dict[str, int]) -> None:
    """Send a question to its job, unless that has ended, which is told by itself."""
    if question.job in questions:
        try:
            os.write(questions[question.job], (json.dumps(question.asks) + "\n").encode())
        except BrokenPipeError:
            pass


def _fork(out: int, order: Order, questions: int, own: tuple[int, ...]) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        _die_with(server)
        os.setsid()  # a group of its own: it can be ended with all that it starts
        send(out, Event("started", order.job, pid=os.getpid()))
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for fd in own:
            os.close(fd)
        os.dup2(questions, 0)
        os.close(questions)
        _run(out, order, sys.stdin)
        code = 0
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that comes (Linux only)."""
    if sys.platform == "linux":
        set_signal_at_parents_death = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_signal_at_parents_death, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(70)  # it had ended before


def _run(out: int, order: Order, questions: Iterable[str]) -> None:
    if order.current is not None:  # the server may have been started elsewhere
        os.chdir(order.current)
    _redirect_output(str(order.folder / LOG))
    run_job(order, lambda event: send(out, event), questions)


def _reap(out: int, children: dict[int, str], questions: dict[str, int]) -> None:
    while True:
        try:
            # Looked at and not yet taken: until then its number belongs to no other process.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        pid = ended.si_pid
        job = children.pop(pid, None)
        if job is not None:
            _kill_group(pid)
            if not children:  # whose an orphan is can't be told: those of other jobs may be at work
                _end_orphans({pid})
        _, status = os.waitpid(pid, 0)
        if job is not None:
            os.close(questions.pop(job))
            send(out, Event("exited", job, code=os.waitstatus_to_exitcode(status)))


def _end_orphans(but: set[int]) -> None:
    """End all children of this process but some, and what they leave in turn."""
    for _ in range(_GENERATIONS):
        left = [pid for pid in _child_pids() if pid not in but]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)  # its own children are ours now
            except (ProcessLookupError, ChildProcessError):
                pass


def _child_pids() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children()]


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _redirect_output(path: str) -> None:
    """Send what libraries print to a file: standard output carries events only."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


if __name__ == "__main__":
    main()
