"""Whether a real machine tells equal recipes apart, and finds int8 slower than none.

    python tests/benchmarks/equal_recipes.py [COMPARISONS] [--busy] [--repeats N]

Each comparison times none, int8, and one recipe that is written in five ways, in rounds. With
--busy two other processes take all the processor time they get meanwhile. Ten comparisons take
about five minutes on two quiet cores, and ten busy.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys

import quantolab as ql
from quantolab.measure.ratios import FASTER, SLOWER, ratio_of

SAME = (
    ("norm_out",),
    ("norm_out.linear",),
    ("norm_out.*",),
    ("norm_ou?.linear",),
    ("*norm_out.linear",),
)
"""One layer, written in five ways."""
BUSY = "while True: pass"


def judged(repeats: int) -> tuple[int, int, bool]:
    """Return the pairs of equal recipes that are told apart, all of them, and int8's verdict."""
    recipes = ["none", "int8", *(ql.Recipe("int4", skip) for skip in SAME)]
    run = ql.compare("demo", recipes, repeats=repeats, watch=lambda progress: None)
    assert all(trial.ok for trial in run.trials), [trial.reason for trial in run.trials]
    none, int8, *equal = (trial.timing for trial in run.trials)
    pairs = list(itertools.combinations(equal, 2))
    apart = sum(ratio_of(*pair).verdict in (FASTER, SLOWER) for pair in pairs)
    load = max(trial.timing.other_load or 0 for trial in run.trials)
    ratio = ratio_of(none, int8)
    print(
        f"{apart} of {len(pairs)} pairs told apart; int8 {ratio.verdict} {ratio.middle:.2f} "
        f"({ratio.low:.2f}-{ratio.high:.2f}); others took {100 * load:.0f} %",
        flush=True,
    )
    return apart, len(pairs), ratio.verdict == SLOWER


def main() -> None:
    """Print a line a comparison, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparisons", type=int, nargs="?", default=10)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    asked = parser.parse_args()
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * asked.busy)]
    try:
        found = [judged(asked.repeats) for _ in range(asked.comparisons)]
    finally:
        for process in others:
            process.kill()
            process.wait()
    apart, pairs, slower = (sum(column) for column in zip(*found, strict=True))
    print(f"{apart} of {pairs} equal pairs told apart (at most {pairs / 20:.0f})")
    print(f"int8 found slower than none in {slower} of {len(found)}")


if __name__ == "__main__":
    main()
