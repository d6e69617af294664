"""Two recipes timed in rounds: how many times slower one is, how sure that is, and in words.

What a machine does meanwhile (other work, clocks, heat) hits all generations of a round alike, so
only ratios within a round are looked at, never seconds of different rounds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ArgumentError
from ..records import Timing
from ..units import format_count, format_places
from .statistics import LEAST_SAMPLES

MARGIN = 0.01
"""Two processes that do the same may differ by so much: where their memory happens to lie."""

Verdict = Literal["faster", "slower", "no difference", "not decided"]
FASTER: Verdict = "faster"
SLOWER: Verdict = "slower"
NO_DIFFERENCE: Verdict = "no difference"
NOT_DECIDED: Verdict = "not decided"

_MANY = 999  # more rounds than that aren't told apart


@dataclass(frozen=True)
class Ratio:
    """Seconds of one recipe over those of another, from ratios within rounds."""

    middle: float
    """Hodges and Lehmann's estimate. Above 1 is slower."""
    low: float | None
    high: float | None
    """95 % interval; None where the rounds are too few for one."""
    rounds: int

    @property
    def verdict(self) -> Verdict | None:
        """What the interval shows; None without one."""
        if self.low is None or self.high is None:
            return None
        least, most = 1 / (1 + MARGIN), 1 + MARGIN
        if self.low > most:
            return SLOWER
        if self.high < least:
            return FASTER
        return NO_DIFFERENCE if self.low >= least and self.high <= most else NOT_DECIDED

    @property
    def more_rounds(self) -> int | None:
        """About how many more rounds would decide; None where it is decided.

        The interval narrows with the square root of the rounds; it has to become narrower than
        the estimate's distance from the nearer edge of the margin.
        """
        if self.verdict not in (None, NOT_DECIDED):
            return None
        if self.low is None or self.high is None:
            return LEAST_SAMPLES - self.rounds
        half = math.log(self.high / self.low) / 2
        room = abs(abs(math.log(self.middle)) - math.log1p(MARGIN))
        needed = self.rounds * (half / room) ** 2 if room else math.inf
        return int(min(max(1, math.ceil(needed - self.rounds)), _MANY))


def paired_ratio(reference: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return how many times the seconds of `reference` those of `other` are, round by round.

    The estimate is the median of the means of every two log ratios (Hodges and Lehmann, 1963), the
    interval that of Wilcoxon's signed-rank test: exact for any number of rounds, whatever the
    spread looks like, as long as it is as likely to either side.

    Parameters
    ----------
    reference, other : sequence of float
        Seconds; the same position is the same round.

    Raises
    ------
    ArgumentError
        If they aren't of the same rounds, or there is none.

    Examples
    --------
    >>> ratio = paired_ratio([1.0] * 6, [1.25, 1.25, 1.27, 1.23, 1.25, 1.25])
    >>> ratio.verdict, f"{ratio.middle:.2f}"
    ('slower', '1.25')
    """
    if len(reference) != len(other) or not len(reference):
        raise ArgumentError(
            f"seconds of the same rounds are compared, not {len(reference)} with {len(other)}"
        )

    import numpy as np

    logs = np.log(np.asarray(other, dtype=float) / np.asarray(reference, dtype=float))
    upper = _pairs(len(logs))
    means = np.sort((logs[upper[0]] + logs[upper[1]]) / 2)
    middle, cut = float(np.exp(np.median(means))), _cut(len(logs))
    if cut is None:
        return Ratio(middle, None, None, len(logs))
    return Ratio(middle, float(np.exp(means[cut])), float(np.exp(means[-1 - cut])), len(logs))


@functools.lru_cache(maxsize=64)
def _pairs(count: int) -> tuple[Any, Any]:
    """Return the positions of every two of so many values, each with itself too."""
    import numpy as np

    return np.triu_indices(count)


@functools.lru_cache(maxsize=4096)
def _cut(rounds: int, level: float = 0.95) -> int | None:
    """Return how many of the ordered means lie below the interval; None if `level` needs more.

    The number of means below the truth is distributed as the signed-rank statistic: a sum of the
    ranks 1 to n, each in it or not with the same chance.
    """
    import numpy as np

    chances = np.ones(1)
    for rank in range(1, rounds + 1):
        grown = np.zeros(len(chances) + rank)
        grown[: len(chances)] = chances / 2
        grown[rank:] += chances / 2
        chances = grown
    below = int(np.searchsorted(np.cumsum(chances), (1 - level) / 2, side="right"))
    return below - 1 if below > 0 else None


def ratio_of(reference: Timing, other: Timing) -> Ratio | None:
    """Return the ratio of two timings from the rounds that both took part in; None without any."""
    theirs = dict(zip(reference.rounds, reference.samples, strict=False))
    pairs = [
        (theirs[number], seconds)
        for number, seconds in zip(other.rounds, other.samples, strict=False)
        if number >= 0 and number in theirs
    ]
    return paired_ratio(*zip(*pairs, strict=True)) if pairs else None


def verdict_words(
    verdict: str | None,
    ratio: float | None,
    low: float | None,
    high: float | None,
    more: int | None,
) -> str | None:
    """Return a verdict as people read it: ``1.28x slower (1.24–1.33)``.

    Parameters
    ----------
    verdict : str or None
        One of the four, or None.
    ratio, low, high : float or None
        Seconds over the reference's: above 1 is slower.
    more : int or None
        How many more rounds would decide.

    Examples
    --------
    >>> verdict_words("faster", 0.8, 0.75, 0.85, None)
    '1.25x faster (1.18–1.33)'
    >>> verdict_words("not decided", 1.02, 0.99, 1.04, 14)
    'not decided: about 14 more rounds would'
    """
    if verdict == NO_DIFFERENCE:
        return f"no difference (within {format_places(100 * MARGIN, 0)} %)"
    if verdict == NOT_DECIDED:
        return f"not decided: {rounds_to_go(more)} would" if more else NOT_DECIDED
    if verdict not in (FASTER, SLOWER) or not (ratio and low and high):
        return verdict
    middle, low, high = (ratio, low, high) if verdict == SLOWER else (1 / ratio, 1 / high, 1 / low)
    places = 2 if middle < 9.995 else 1
    said, *ends = (format_places(value, places) for value in (middle, low, high))
    return f"{said}x {verdict} ({'–'.join(ends)})"


def rounds_to_go(more: int) -> str:
    """Return ``about 14 more rounds``, no finer than an estimate deserves."""
    if more >= _MANY:
        return "a thousand more rounds or more"
    if more > 20:
        more = round(more, -1)
    return f"about {format_count(more, 'more round')}"
