"""What loading takes on a CPU is at most what `plan` says, and not far below, shape by shape."""

import csv
import sys
from pathlib import Path

import pytest
from zygote import run_file

IMPORTED = 6_000_000
"""Bytes that a first load imports libraries in, which a fork has imported before; measured."""
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "load_peaks.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("options", "count"), [(["--few"], 3), pytest.param([], 24, marks=pytest.mark.sweep)]
)
def test_every_shape_stays_below(options, count):
    done = run_file(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert len(rows) == count
    for row in rows:
        said, measured = int(row["load_peak_bytes"]), int(row["measured_bytes"]) + IMPORTED
        # Of the smallest models, what is allowed for libraries is more than that share.
        assert measured <= said <= max(1.3 * measured, measured + 12_000_000), row
