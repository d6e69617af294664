"""A cluster of our own on this machine: it listens on loopback alone, and shows no dashboard.

Needs the engine; imported only where workers are asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from distributed.deploy.spec import SpecCluster
from distributed.deploy.subprocess import Subprocess

# The home of this quantolab comes last: what lies beside it may have the name of a library.
_BEGIN = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from distributed.cli.dask_spec import main; main()"
)
_LOOPBACK = "127.0.0.1"


class _Worker(Subprocess):
    """A worker in a session of its own: a terminal's Ctrl-C goes to the run alone."""

    def __init__(self, scheduler: str, name: object = None, folder: str = "") -> None:
        super().__init__()
        self._scheduler = scheduler
        self._options: dict[str, Any] = {
            "host": _LOOPBACK,
            "nthreads": 1,
            "memory_limit": 0,
            "dashboard": False,
            "dashboard_address": f"{_LOOPBACK}:0",  # else what tells its health listens to all
            "name": str(name),
            "local_directory": folder,
        }

    async def _start(self) -> None:
        home = str(Path(__file__).resolve().parents[2])
        spec = json.dumps({"cls": "distributed.Nanny", "opts": self._options})
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _BEGIN, home, self._scheduler, "--spec", spec,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"},
            start_new_session=True,
        )  # fmt: skip


def begin(count: int, folder: Path) -> SpecCluster:
    """Begin a cluster of so many workers, which keep their files in a folder."""
    from distributed import Scheduler

    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": _LOOPBACK,
            "port": 0,
            "protocol": "tcp",
            "dashboard": False,
            "dashboard_address": f"{_LOOPBACK}:0",
        },
    }
    worker = {"cls": _Worker, "options": {"folder": str(folder)}}
    return SpecCluster(
        workers=dict.fromkeys(range(count), worker),
        scheduler=scheduler,
        worker=worker,
        name="quantolab",
        silence_logs=False,
        shutdown_on_close=False,  # the run ends it; at exit the engine would wait for it again
    )


def kill(cluster: SpecCluster) -> None:
    """Kill its workers at once; the processes that they started end with them."""
    for worker in list(cluster.workers.values()):
        process = worker.process
        if process is not None and process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
