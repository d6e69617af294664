"""What loading takes is at most what `plan` says, and not far below: six shapes, four dtypes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "load_peaks.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_shape_and_dtype_stays_below():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert len(rows) == 24
    for row in rows:
        said, measured = int(row["load_peak_bytes"]), int(row["measured_bytes"])
        assert measured <= said <= 1.3 * measured, row
