"""What a whole comparison costs beside an earlier quantolab, and over bare generations.

    python tests/benchmarks/whole_comparison.py EARLIER [TIMES] [--repeats N]

EARLIER is a checkout of the earlier one (``git worktree add ../earlier v0.1.0``). Both compare the
demo's five recipes, in turn, with the same number of generations. The pictures of the noise floor,
which an earlier one doesn't make, are said apart. Three times take three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


def whole(checkout: Path, repeats: int) -> tuple[float, float, float]:
    """Return wall seconds, overhead, and about what the floor's pictures took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-P", "-m", "quantolab", "compare", "--out", str(out)]
        subprocess.run(
            [*command, "--repeats", str(repeats)],
            env={**os.environ, "PYTHONPATH": str(checkout)},
            cwd=folder,
            check=True,
            capture_output=True,
        )
        run = json.loads((out / "run.json").read_text())
    reference = next(trial for trial in run["trials"] if trial["recipe"]["weights"] == "none")
    each = statistics.median(reference["timing"]["samples"])
    return run["wall_seconds"], run["overhead"], each * len(run.get("floor", ()))


def main() -> None:
    """Print a line a run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("times", type=int, nargs="?", default=3)
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {"earlier": [], "this": []}
    for _ in range(asked.times):
        for name, checkout in (("earlier", asked.earlier.resolve()), ("this", HERE)):
            found[name].append(whole(checkout, asked.repeats))
            wall, overhead, floor = found[name][-1]
            print(
                f"{name:8} {wall:6.1f} s, floor {floor:4.1f} s, overhead {overhead:.2f}", flush=True
            )
    for name, rows in found.items():
        wall, overhead, floor = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:8} median {wall - floor:.1f} s without the floor, overhead {overhead:.2f}")


if __name__ == "__main__":
    main()
