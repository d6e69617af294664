"""Several threads share one pool of child processes, and an interrupted doctor leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from quantolab.doctor.jobs import Done
from quantolab.errors import ArgumentError
from quantolab.processes.children import Children
from quantolab.processes.jobs import JobKind


def test_threads_share_a_pool(tmp_path):
    """Each thread gets the answer to its own question."""
    with Children() as children, ThreadPoolExecutor(4) as pool:
        folders = [tmp_path / str(n) for n in range(12)]
        said = list(pool.map(lambda f: _refusal(children, f), folders))
    for folder, text in zip(folders, said, strict=True):
        assert f"job 'no {folder.name}' is not known" in text


def _refusal(children, folder):
    with pytest.raises(ArgumentError) as caught:
        children.run(JobKind(f"no {folder.name}", Done, Done), Done(), folder=folder)
    return str(caught.value)


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_matrix_leaves_nothing(tmp_path, real_servers):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it\n"
        "from quantolab.doctor.matrix import path_matrix\n"
        "path_matrix(weights='int8')\n"
    )
    doctor = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        _wait_for(lambda: any(tmp_path.glob("quantolab-doctor-*/unquantized-*")))
        below = psutil.Process(doctor.pid).children(recursive=True)
        doctor.send_signal(signal.SIGINT)
        _, said = doctor.communicate(timeout=60)
    finally:
        doctor.kill()
    assert "KeyboardInterrupt" in said
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive
    assert not any(tmp_path.glob("quantolab-doctor-*"))


def _wait_for(happened, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
