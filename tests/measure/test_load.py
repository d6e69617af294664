"""How much of the machine others took while we measured."""

from __future__ import annotations

import subprocess
import sys
import time

from quantolab.measure.other_load import OtherLoad

BURN = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_other_work_is_seen_and_own_work_is_not():
    with OtherLoad() as alone:
        burn(1.0)
    others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
    try:
        with OtherLoad() as crowded:
            time.sleep(1.5)
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert 0.0 <= alone.share <= 1.0
    assert crowded.share > 0.2
