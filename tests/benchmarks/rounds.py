"""How often verdicts from rounds are wrong, and find something, on simulated machines.

    python tests/benchmarks/rounds.py [TRIALS]

Noise is shaped as that of real generations: log-normal with a tail, each sample a little like the
one before, on a machine that drifts, is busy in bursts, and whose processes aren't alike. Five
recipes are timed in rounds as `compare` does it, each round in an order of its own, and judged by
the package's own functions. A minute for 1,000 trials.
"""

from __future__ import annotations

import sys

import numpy as np

from quantolab.measure.ratios import FASTER, SLOWER, paired_ratio
from quantolab.measure.statistics import median_interval

RECIPES, ROUNDS = 5, 30

# drift: sd and correlation time (generations); noise: sd, correlation; bursts: share, +share;
# processes: sd between two that do the same.
SCENARIOS = {
    "quiet": {},
    "quiet, processes 0.5 %": {"processes": 0.005},
    "drift 10 %": {"drift": (0.10, 200)},
    "drift 20 %": {"drift": (0.20, 200)},
    "bursts 30 % of the time": {"bursts": (0.30, 0.3)},
    "noise 5 %, correlated": {"noise": (0.05, 0.6)},
}


def machine(random, trials, length, drift=(0.0, 200), noise=(0.02, 0.3), bursts=(0.0, 0.0)):
    """Return by how much each generation takes longer than it should, shape (trials, length)."""
    keep, (spread, like) = np.exp(-1 / drift[1]), noise
    slow, quick = random.normal(0, drift[0], trials), random.normal(0, spread, trials)
    share, more = bursts
    stay, begin = 1 - 1 / 30, share / (1 - share) / 30
    busy = random.random(trials) < share
    out = np.empty((trials, length))
    for i in range(length):
        slow = keep * slow + np.sqrt(1 - keep**2) * random.normal(0, drift[0], trials)
        quick = like * quick + np.sqrt(1 - like**2) * random.normal(0, spread, trials)
        busy = random.random(trials) < np.where(busy, stay, begin)
        tail = 1 + (random.random(trials) < 0.05) * random.exponential(0.15, trials)
        out[:, i] = np.exp(slow + quick) * tail * (1 + more * busy)
    return out


def rounds(random, trials, slower, processes=0.0, **noise):
    """Return seconds of two of the recipes, shape (trials, rounds) each, and their true ratios."""
    seconds = machine(random, trials, ROUNDS * RECIPES, **noise).reshape(trials, ROUNDS, RECIPES)
    order = np.argsort(random.random((trials, ROUNDS, RECIPES)), axis=2)
    own = np.exp(random.normal(0, processes, (trials, 2)))
    one, other = (
        np.take_along_axis(seconds, order[:, :, [k]], axis=2)[:, :, 0] * own[:, [k]] for k in (0, 1)
    )
    return one, other * slower, slower * own[:, 1] / own[:, 0]


def judged(random, trials, slower, **noise):
    """Return the shares of faster and of slower, and of intervals that hold the true ratio."""
    found, held = [], 0
    for one, other, true in zip(*rounds(random, trials, slower, **noise), strict=True):
        ratio = paired_ratio(one, other)
        found.append(ratio.verdict)
        held += ratio.low <= true <= ratio.high
    return found.count(FASTER) / trials, found.count(SLOWER) / trials, held / trials


def latency_coverage(random, trials, samples):
    """Return how often the interval of a latency holds the median, samples independent."""
    true = np.median(machine(random, 200_000, 1, noise=(0.02, 0.0)))
    drawn = machine(random, trials * samples, 1, noise=(0.02, 0.0)).reshape(trials, samples)
    ends = [median_interval(row) for row in drawn.tolist()]
    return sum(low <= true <= high for low, high in ends) / trials


def main() -> None:
    """Print a line a scenario."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    random = np.random.default_rng(16)
    print(f"{ROUNDS} rounds, {trials} trials each; shares in per cent")
    print(f"{'':26}  equal called different  3 % found  ratio's interval holds")
    for name, scenario in SCENARIOS.items():
        faster, slower, held = judged(random, trials, 1.0, **scenario)
        _, found, held_too = judged(random, trials, 1.03, **scenario)
        holds = 50 * (held + held_too)
        print(f"{name:26}  {100 * (faster + slower):22.1f}  {100 * found:9.1f}  {holds:22.1f}")
    for samples in (6, 7, 10, 20, 30):
        share = latency_coverage(random, trials, samples)
        print(f"interval of the median of {samples:2} samples holds it: {100 * share:.1f} %")


if __name__ == "__main__":
    main()
