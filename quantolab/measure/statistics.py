"""What a handful of timings or answers can and can't show: intervals."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from ..errors import ArgumentError, whole_number

LEAST_SAMPLES = 6
"""Fewer have no 95 % interval: the whole range of five holds the median with 93.8 % alone."""


def median_interval(
    samples: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return a confidence interval of the median, in the unit of the samples.

    Between order statistics, which hold the median with a known probability whatever the samples
    are drawn from; those of the two nearest pairs are joined so that the interval holds it as
    often as it claims, to within half a point for what timings look like (Hettmansperger and
    Sheather). Samples must not depend on one another.

    Parameters
    ----------
    samples : sequence of float
        Repeated observations of one thing, seconds per picture for example.
    confidence : float
        Share of repeated experiments whose interval is to hold the true median.

    Returns
    -------
    tuple of float, or None
        Lower and upper end; None where even the whole range of so few samples holds the median
        less often than that: below six for 95 %.

    References
    ----------
    Hettmansperger and Sheather, "Confidence intervals based on interpolated order statistics",
    Statistics & Probability Letters 4 (1986).

    Examples
    --------
    >>> median_interval([0.5] * 6)
    (0.5, 0.5)
    >>> median_interval([0.5] * 5) is None
    True
    """
    count = len(samples)
    if not count or 1 - 2.0 ** (1 - count) < confidence:
        return None

    ordered = sorted(map(float, samples))
    depth = 1  # of the narrowest pair that holds it often enough, counted from the ends
    while depth + 1 <= count // 2 and _held(depth + 1, count) >= confidence:
        depth += 1
    if depth + 1 > (count + 1) // 2:
        return ordered[depth - 1], ordered[-depth]
    least, more = _held(depth + 1, count), _held(depth, count)
    spare = (more - confidence) / (more - least)
    inward = (count - depth) * spare / (depth + (count - 2 * depth) * spare)
    low = ordered[depth - 1] + inward * (ordered[depth] - ordered[depth - 1])
    high = ordered[-depth] - inward * (ordered[-depth] - ordered[-depth - 1])
    return low, high


@functools.lru_cache(maxsize=4096)
def _held(depth: int, count: int) -> float:
    """Return how often the pair so deep in so many ordered samples holds the median."""
    from scipy.stats import binom

    return 1 - 2 * float(binom.cdf(depth - 1, count, 0.5))


def binomial_interval(right: int, answers: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of the share of right answers, from 0 to 1.

    Clopper and Pearson's: each end leaves at most half of 1 - `level` beyond it, so the interval
    holds the true share at least as often as it claims, however few the answers. It supposes that
    the answers don't depend on one another and that their number was fixed beforehand.

    Parameters
    ----------
    right, answers : int
        How many of how many were right. No answer at all leaves everything possible.
    level : float
        Share of repeated experiments whose interval is to hold the true share.

    Raises
    ------
    ArgumentError
        If more are right than there are answers, or the level is no share.

    References
    ----------
    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934).

    Examples
    --------
    >>> low, high = binomial_interval(6, 10)
    >>> f"{low:.2f} to {high:.2f}"
    '0.26 to 0.88'
    """
    _check_answers(right, answers, level)
    if not answers:
        return 0.0, 1.0

    from scipy.stats import binomtest

    interval = binomtest(right, answers).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def more_right_answers(right: int, answers: int, level: float = 0.95) -> int:
    """Return how many more answers, all of them right, would show that they are no guesses.

    That is the case once `binomial_interval` lies above one half.

    Examples
    --------
    >>> more_right_answers(0, 0)
    6
    """
    _check_answers(right, answers, level)

    from scipy.stats import binom

    # The lower end is above one half when guessing would do as well with less than this chance.
    chance = (1 - level) / 2
    return next(
        more
        for more in itertools.count()
        if binom.sf(right + more - 1, answers + more, 0.5) < chance
    )


def _check_answers(right: int, answers: int, level: float) -> None:
    whole_number("answers", answers, least=0)
    if whole_number("right answers", right, least=0) > answers:
        raise ArgumentError(f"{right} of {answers} answers can't be right")
    if not 0 < level < 1:
        raise ArgumentError(f"a confidence level is a share between 0 and 1, not {level!r}")
