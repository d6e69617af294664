"""What a handful of timings or answers can and can't show: intervals, and verdicts on them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from ..errors import ArgumentError, whole_number
from ..records import Timing
from ..units import format_ratio

LEAST_SAMPLES = 3
"""One sample has no spread and two have no middle; below this there is no interval."""

_RESAMPLES = 9999  # odd by one, so that 2.5 % and 97.5 % fall on resampled medians


def median_interval(
    samples: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Return a confidence interval of the median, in the unit of the samples.

    A percentile bootstrap: the samples are drawn again with replacement 9,999 times, and the
    interval holds the middle `confidence` of the medians that come out. The same samples and
    seed give the same interval.

    The interval can't reach beyond the extreme samples, so few samples cover the true median
    less often than they claim: the whole range of n samples holds it with probability
    1 - 2**(1 - n), which is 75 % for three, 87.5 % for four, 93.8 % for five and 96.9 % for six.

    Parameters
    ----------
    samples : sequence of float
        Repeated observations of one thing, seconds per picture for example.
    confidence : float
        Share of repeated experiments whose interval is to hold the true median.
    seed : int
        Seed of the resampling.

    Returns
    -------
    tuple of float, or None
        Lower and upper end; None for fewer than three samples.

    References
    ----------
    Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13.

    Examples
    --------
    >>> median_interval([0.5, 0.5, 0.5])
    (0.5, 0.5)
    >>> median_interval([0.5]) is None
    True
    """
    if len(samples) < LEAST_SAMPLES:
        return None
    if min(samples) == max(samples):
        return float(samples[0]), float(samples[0])

    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (np.asarray(samples, dtype=float),),
        np.median,
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def verdict(reference: Timing, other: Timing) -> str | None:
    """Return what two timings show: how many times faster or slower `other` is.

    Parameters
    ----------
    reference, other : Timing
        Timings of the same work under the same conditions.

    Returns
    -------
    str or None
        ``"1.32x slower"``, ``"1.10x faster"``, ``"no difference shown"`` where the 95 % intervals
        of the two medians overlap, or None where either has too few samples for an interval.

    Examples
    --------
    >>> verdict(Timing((1.0, 1.0, 1.0)), Timing((2.0, 2.0, 2.0)))
    '2.00x slower'
    """
    ours, theirs = median_interval(reference.samples), median_interval(other.samples)
    if ours is None or theirs is None:
        return None
    if ours[0] <= theirs[1] and theirs[0] <= ours[1]:
        return "no difference shown"
    before, after = statistics.median(reference.samples), statistics.median(other.samples)
    if after > before:
        return f"{_visible_ratio(after / before)} slower"
    return f"{_visible_ratio(before / after)} faster"


def _visible_ratio(ratio: float) -> str:
    """Return a ratio above 1 as text that doesn't read "1.00x": a difference was shown."""
    return format_ratio(ratio) if ratio >= 1.005 else "under 1.01x"


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
