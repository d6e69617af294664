"""Jobs for tests of processes. A child that preloads this module can do them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from quantolab.errors import ArgumentError
from quantolab.processes.jobs import Desk, JobKind, Preload

NAME = "quantolab.child_jobs"  # jobs have to be the package's own
sys.modules[NAME] = sys.modules[__name__]
PRELOAD = Preload(modules=("child_jobs",))
_PATH = (str(Path(__file__).parent), *filter(os.path.isabs, sys.path))
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(_PATH)}


@dataclass(frozen=True)
class Begin:
    """Start other processes, then end in some way."""

    end: str
    """``well``, ``killed``, ``wait`` or ``busy``."""
    detached: bool = True


@dataclass(frozen=True)
class Begun:
    pids: tuple[int, ...]


BEGIN = JobKind(f"{NAME}:begin", Begin, Begun)


def begin(asked: Begin, desk: Desk) -> Begun:
    pids = [subprocess.Popen(["sleep", "1000"]).pid]
    if asked.detached:
        pids.append(_daemon(desk))
    (desk.folder / "pids").write_text(" ".join(map(str, pids)))
    desk.step()
    if asked.end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.end == "wait":
        with desk.signs_of_life(0.1):
            time.sleep(1000)
    if asked.end == "busy":
        with desk.signs_of_life(0.1):
            until = time.monotonic() + 2
            while time.monotonic() < until:
                pass
    return Begun(tuple(pids))


def _daemon(desk: Desk) -> int:
    """Start what wants to outlive everybody: its parent ends at once, its session is its own."""
    script = "import os,sys,time\nif os.fork(): os._exit(0)\nos.setsid()\n"
    script += "print(os.getpid(), flush=True); os.close(1); time.sleep(1000)"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    return int(done.stdout)


@dataclass(frozen=True)
class Start:
    """Hold a number that is added to."""

    number: int


@dataclass(frozen=True)
class Add:
    number: int
    """What to add; 0 kills the process, below 0 is an error."""


ADDING = JobKind(f"{NAME}:adding", Start, Add)


def adding(asked: Start, desk: Desk) -> Add:
    total = asked.number

    def answer(more: Add) -> Add:
        nonlocal total
        if not more.number:
            os.kill(os.getpid(), signal.SIGKILL)
        if more.number < 0:
            raise ArgumentError("only more")
        total += more.number
        desk.step()
        return Add(total)

    found = Add(total)
    desk.hold(found, answer, Add)
    return found


@dataclass(frozen=True)
class Reach:
    """Use the accelerator of a kind, as torch would."""

    kind: str


@dataclass(frozen=True)
class Reached:
    refused: bool
    parent: int


REACH = JobKind(f"{NAME}:reach", Reach, Reached)


def reach(asked: Reach, desk: Desk) -> Reached:
    import torch

    return Reached(getattr(torch, asked.kind)._is_in_bad_fork(), os.getppid())


if BEGINS := os.environ.get("BEGINS_WITH"):  # a kind of device, as an import may begin with one
    import torch

    # What torch registers as soon as a driver was asked for devices.
    os.register_at_fork(
        after_in_child=lambda: setattr(getattr(torch, BEGINS), "_is_in_bad_fork", lambda: True)
    )
