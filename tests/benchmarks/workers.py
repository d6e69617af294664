"""Pictures of 8 recipes x 12 prompts by two local workers, and by one: seconds, and whether alike.

    python tests/benchmarks/workers.py [--workers 2] [--steps 10]

Each worker has one thread. Seconds are those from the first trial's beginning to the last picture
kept; timing rounds are exclusive, don't share, and are left out.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"

import quantolab as ql

RECIPES = (
    "none", "float8", "int8", "int4", "int2",
    "int8 proj_out=none", "int4 proj_out=none", "int4 *.attn.*=int8",
)  # fmt: skip
PROMPTS = [f"a {colour} {thing} under a sun" for colour in ("red", "blue", "white", "green")
           for thing in ("house", "tree", "boat")]  # fmt: skip


def pictures(workers: int, steps: int) -> tuple[float, dict]:
    """Return the seconds that the pictures took, and the pictures."""
    moments: dict[str, float] = {}

    def watch(progress) -> None:
        if progress.doing:
            moments.setdefault("first", time.perf_counter())
        if progress.trial is not None and "timing" not in moments:
            moments["last"] = time.perf_counter()
        if progress.stage == "timing":
            moments.setdefault("timing", time.perf_counter())

    made = ql.compare(
        "demo", RECIPES, PROMPTS, steps=steps, repeats=1, device="cpu", workers=workers,
        watch=watch,
    )  # fmt: skip
    return moments["last"] - moments["first"], made.images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    one, theirs = pictures(1, asked.steps)
    several, ours = pictures(asked.workers, asked.steps)
    alike = all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
    print(f"one worker {one:.1f} s, {asked.workers} workers {several:.1f} s: {one / several:.2f}x")
    print(f"the same pictures to the bit: {alike}")


if __name__ == "__main__":
    main()
