"""Pictures of 8 recipes x 12 prompts by two local workers, and by one: seconds, and whether alike.

    python tests/benchmarks/workers.py [--workers 2] [--steps 10] [--prompts 12] [--times 3]

Each worker has one thread. Seconds are those from the first trial's beginning to the last picture
kept; timing rounds are exclusive, don't share, and are left out. One worker and several take
turns, and medians are compared: a machine that does something else slows both.

Processor seconds, which other programs change little, tell what a quiet machine with as many
processors would do at best: several workers can't be done before the busiest of them has had its
seconds, nor before all, with the run's own process, have shared the processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import psutil

import quantolab as ql

RECIPES = (
    "none", "float8", "int8", "int4", "int2",
    "int8 proj_out=none", "int4 proj_out=none", "int4 *.attn.*=int8",
)  # fmt: skip
PROMPTS = [f"a {colour} {thing} under a sun" for colour in ("red", "blue", "white", "green")
           for thing in ("house", "tree", "boat")]  # fmt: skip


def used() -> tuple[float, list[float]]:
    """Return the processor seconds of this process, and of each worker with all below it."""
    own = os.times()
    workers = [
        sum(sum(process.cpu_times()[:4]) for process in _tree(nanny))
        for nanny in psutil.Process().children()
        if "dask_spec" in " ".join(nanny.cmdline())
    ]
    return own.user + own.system, workers


def _tree(top: psutil.Process) -> list[psutil.Process]:
    return [p for p in (top, *top.children(recursive=True)) if p.is_running()]


def pictures(workers: int, asked: argparse.Namespace) -> tuple[float, float, dict]:
    """Return the seconds that the pictures took, the least that they can, and the pictures."""
    moments: dict[str, tuple[float, float, list[float]]] = {}

    def watch(progress) -> None:
        if progress.doing and "first" not in moments:
            moments["first"] = (time.perf_counter(), *used())
        if progress.trial is not None:
            moments["last"] = (time.perf_counter(), *used())

    made = ql.compare(
        "demo", RECIPES, PROMPTS[: asked.prompts], steps=asked.steps, repeats=1, device="cpu",
        workers=workers, watch=watch,
    )  # fmt: skip
    (began, own, before), (ended, own_after, after) = moments["first"], moments["last"]
    each = [end - start for start, end in zip(before, after, strict=True)]
    least = max(*each, 0.0, (sum(each) + own_after - own) / max(2, workers))
    shares = ", ".join(f"{seconds:.1f}" for seconds in each)
    print(
        f"{workers} workers: {ended - began:.1f} s; processor seconds: {shares}, the run's own "
        f"{own_after - own:.1f}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return ended - began, least, made.images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    sides = [[pictures(count, asked) for count in (1, asked.workers)] for _ in range(asked.times)]
    for name, number in (("seconds", 0), ("least by processor seconds", 1)):
        one, several = (statistics.median(pair[side][number] for pair in sides) for side in (0, 1))
        print(f"{name}: {one:.1f} and {several:.1f}: {one / several:.2f}x")
    theirs = sides[0][0][2]
    alike = all(
        images[key].tobytes() == picture.tobytes()
        for pair in sides for _, _, images in pair for key, picture in theirs.items()
    )  # fmt: skip
    print(f"the same pictures to the bit: {alike}")


if __name__ == "__main__":
    main()
