"""Whether a generation takes as long as torch.utils.benchmark says.

    python tests/benchmarks/agreement.py [TIMES]

The same picture of the demo model, timed by quantolab and by torch's Timer in turn. Half a minute.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from quantolab.measure.ratios import paired_ratio
from quantolab.processes.jobs import Desk
from quantolab.run.asked import check_request
from quantolab.run.jobs import TrialJob
from quantolab.run.studio import Studio, prepare


def main() -> None:
    """Print both medians and their ratio, from pairs."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    request = check_request("demo", ["none"], repeats=1)
    workload = dataclasses.replace(request.workload, device="cpu")
    asked = TrialJob(request.source, workload, request.recipes[0], request.components)
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(prepare(asked), workload, Desk(Path(folder)))
        make = making(studio, workload.pairs[0])
        timer = Timer("make()", globals={"make": make}, num_threads=torch.get_num_threads())
        make()
        ours, theirs = [], []
        for _ in range(times):
            ours.append(make())
            theirs.append(timer.timeit(1).mean)
    ratio = paired_ratio(theirs, ours)
    print(f"quantolab {1000 * statistics.median(ours):.1f} ms a generation")
    print(f"torch     {1000 * statistics.median(theirs):.1f} ms")
    print(f"ratio     {ratio.middle:.4f} ({ratio.low:.4f}-{ratio.high:.4f})")


def making(studio: Studio, pair: tuple[str, int]):
    """Return a call that makes one picture and returns its seconds."""
    return lambda: studio.make(*pair)[1]


if __name__ == "__main__":
    main()
