"""What loading takes on a CPU is at most what `plan` says, and not far below, shape by shape."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "load_peaks.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("options", "count"), [(["--few"], 3), pytest.param([], 24, marks=pytest.mark.sweep)]
)
def test_every_shape_stays_below(options, count):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert len(rows) == count
    for row in rows:
        said, measured = int(row["load_peak_bytes"]), int(row["measured_bytes"])
        assert measured <= said <= 1.3 * measured, row
