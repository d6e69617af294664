"""Ratios within rounds: by hand, against SciPy's test, and how often a verdict is wrong."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from quantolab.errors import ArgumentError
from quantolab.measure.ratios import (
    FASTER,
    NO_DIFFERENCE,
    NOT_DECIDED,
    SLOWER,
    Ratio,
    paired_ratio,
    ratio_of,
    rounds_to_go,
    verdict_words,
)
from quantolab.records import Timing


def drawn(count, slower=1.0, spread=0.02, seed=0):
    """Return seconds of so many rounds of two recipes on a machine that drifts a lot."""
    random = np.random.default_rng(seed)
    machine = np.exp(np.cumsum(random.normal(0, 0.2, count)))
    return machine * np.exp(random.normal(0, spread, count)), slower * machine * np.exp(
        random.normal(0, spread, count)
    )


def test_estimate_and_interval_by_hand():
    ratios = [1.1, 1.2, 1.3, 1.4, 1.5, 1.9]
    ratio = paired_ratio([1.0] * 6, ratios)
    logs = [math.log(r) for r in ratios]
    means = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(logs, 2)]
    assert ratio.middle == pytest.approx(math.exp(statistics.median(means)))
    assert (ratio.low, ratio.high) == (pytest.approx(1.1), pytest.approx(1.9))
    assert ratio.rounds == 6


@pytest.mark.parametrize("count", [6, 9, 20, 33])
def test_the_interval_is_that_of_scipys_signed_rank_test(count):
    one, other = drawn(count, 1.05)
    ratio, logs = paired_ratio(one, other), np.log(other / one)
    for end, inward in ((ratio.low, 1), (ratio.high, -1)):
        just = 1e-9 * inward
        inside = stats.wilcoxon(logs - math.log(end) - just, method="exact").pvalue
        outside = stats.wilcoxon(logs - math.log(end) + just, method="exact").pvalue
        assert outside <= 0.05 < inside


@pytest.mark.parametrize("count", range(1, 6))
def test_too_few_rounds_have_an_estimate_but_no_interval_and_no_verdict(count):
    ratio = paired_ratio([1.0] * count, [2.0] * count)
    assert ratio.middle == pytest.approx(2)
    assert ratio.low is ratio.high is ratio.verdict is None
    assert ratio.more_rounds == 6 - count


def test_a_drift_that_hits_both_alike_hides_nothing():
    assert paired_ratio(*drawn(20, 1.1)).verdict == SLOWER
    assert paired_ratio(*drawn(20, 1 / 1.1)).verdict == FASTER
    assert paired_ratio(*drawn(20, 1.0, spread=0.002)).verdict == NO_DIFFERENCE


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.011, 1.2, SLOWER),
        (1.009, 1.2, NOT_DECIDED),
        (0.8, 0.989, FASTER),
        (0.8, 0.9999 / 1.01, FASTER),
        (0.8, 0.991, NOT_DECIDED),
        (0.995, 1.005, NO_DIFFERENCE),
        (0.995, 1.02, NOT_DECIDED),
        (1.001, 1.005, NO_DIFFERENCE),
    ],
)
def test_what_an_interval_shows(low, high, verdict):
    assert Ratio(math.sqrt(low * high), low, high, 10).verdict == verdict


def test_the_rounds_that_are_said_to_be_missing_decide_in_most_cases():
    decided = 0
    for seed in range(60):
        one, other = drawn(400, 1.05, spread=0.06, seed=seed)
        ratio = paired_ratio(one[:8], other[:8])
        more = ratio.more_rounds or 0
        later = paired_ratio(one[: 8 + more], other[: 8 + more])
        decided += later.verdict != NOT_DECIDED
    assert decided > 30


def test_equal_recipes_are_seldom_told_apart():
    told = [paired_ratio(*drawn(10, seed=seed)).verdict for seed in range(300)]
    assert sum(v in (FASTER, SLOWER) for v in told) <= 9


def test_only_rounds_that_both_took_part_in_count():
    reference = Timing((1.0, 2.0, 4.0), rounds=(0, 1, 2))
    other = Timing((3.0, 6.0, 9.0), rounds=(1, 2, 3))
    ratio = ratio_of(reference, other)
    assert (ratio.rounds, ratio.middle) == (2, pytest.approx(1.5))


def test_what_was_timed_alone_has_no_ratio():
    assert ratio_of(Timing((1.0,) * 9), Timing((2.0,) * 9)) is None
    assert ratio_of(Timing((1.0,), rounds=(0,)), Timing((2.0,), rounds=(1,))) is None
    assert ratio_of(Timing((1.0,), rounds=(-1,)), Timing((2.0,), rounds=(-1,))) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((SLOWER, 1.28, 1.24, 1.33, None), "1.28x slower (1.24–1.33)"),
        ((SLOWER, 12.0, 11.9, 12.2, None), "12.0x slower (11.9–12.2)"),
        ((FASTER, 0.5, 0.4, 0.625, None), "2.00x faster (1.60–2.50)"),
        ((NO_DIFFERENCE, 1.0, 0.995, 1.005, None), "no difference (within 1 %)"),
        ((NOT_DECIDED, 1.0, 0.9, 1.1, 14), "not decided: about 14 more rounds would"),
        ((NOT_DECIDED, 1.0, 0.9, 1.1, None), "not decided"),
        ((None, 1.0, None, None, 2), None),
        (("1.32x slower", 0.7, None, None, None), "1.32x slower"),  # of quantolab 0.1
    ],
)
def test_verdicts_in_words(arguments, words):
    assert verdict_words(*arguments) == words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (1, "about 1 more round"),
        (14, "about 14 more rounds"),
        (87, "about 90 more rounds"),
        (999, "a thousand more rounds or more"),
    ],
)
def test_how_many_more_rounds(more, words):
    assert rounds_to_go(more) == words


def test_rounds_of_different_numbers_are_refused():
    with pytest.raises(ArgumentError, match="not 1 with 2"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ArgumentError, match="not 0 with 0"):
        paired_ratio([], [])
