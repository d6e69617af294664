"""Intervals and verdicts: the hand-made cases, and how often the interval holds the truth."""

import math
import statistics
import warnings

import numpy as np
import pytest

from quantolab.errors import ArgumentError
from quantolab.measure.statistics import (
    binomial_interval,
    median_interval,
    more_right_answers,
)


@pytest.mark.parametrize("count", range(6))
def test_too_few_samples_have_no_interval(count):
    assert median_interval((1.0, 3.0, 2.0, 5.0, 4.0)[:count]) is None


def test_less_confidence_needs_fewer_samples():
    assert median_interval((3.0, 1.0, 2.0), confidence=0.75) == (1.0, 3.0)
    assert median_interval((3.0, 1.0, 2.0), confidence=0.76) is None


def test_constant_samples_have_an_interval_of_no_width_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert median_interval((0.25,) * 6) == (0.25, 0.25)


def test_six_samples_by_hand():
    # The range holds the median in 96.875 % of cases, the four in the middle in 78.125 %, so a
    # tenth of the way in probability is to spare, and 5 / 14 of the way in samples.
    low, high = median_interval((6.0, 1.0, 2.0, 4.0, 3.0, 5.0))
    assert (low, high) == (pytest.approx(1 + 5 / 14), pytest.approx(6 - 5 / 14))


def test_the_interval_holds_the_sample_median_and_stays_inside_the_range():
    for seed in range(40):
        samples = tuple(np.random.default_rng(seed).lognormal(size=6 + seed % 9))
        low, high = median_interval(samples)
        assert min(samples) <= low <= statistics.median(samples) <= high <= max(samples)


def test_less_confidence_is_narrower():
    samples = tuple(np.random.default_rng(0).normal(10, 1, size=30))
    low, high = median_interval(samples, 0.95)
    inner_low, inner_high = median_interval(samples, 0.5)
    assert low < inner_low < inner_high < high


@pytest.mark.long
@pytest.mark.parametrize("size", [6, 7, 10, 15, 40])
def test_coverage_of_skewed_timings(size):
    random = np.random.default_rng(2026)
    held = 0
    for _ in range(2000):  # a standard error of half a point
        low, high = median_interval(tuple(random.lognormal(0.0, 0.3, size)))
        held += low <= 1.0 <= high  # the median of this lognormal is 1
    assert 0.93 <= held / 2000 <= 0.97


def binomial(at_least, answers, share):
    """Chance of so many right answers or more."""
    return math.fsum(
        math.comb(answers, k) * share**k * (1 - share) ** (answers - k)
        for k in range(at_least, answers + 1)
    )


@pytest.mark.parametrize(("right", "answers"), [(6, 10), (1, 12), (19, 20), (250, 500)])
def test_binomial_interval_by_its_definition(right, answers):
    low, high = binomial_interval(right, answers)
    assert binomial(right, answers, low) == pytest.approx(0.025)
    assert 1 - binomial(right + 1, answers, high) == pytest.approx(0.025)


def test_binomial_interval_at_the_edges():
    assert binomial_interval(0, 0) == (0.0, 1.0)
    assert binomial_interval(0, 5) == (0.0, pytest.approx(1 - 0.025**0.2))
    assert binomial_interval(5, 5) == (pytest.approx(0.025**0.2), 1.0)
    low, high = binomial_interval(6, 10, level=0.5)
    assert 0.262 < low < 0.6 < high < 0.878


@pytest.mark.parametrize(("right", "answers"), [(0, 0), (6, 10), (3, 9), (0, 7), (40, 70)])
def test_the_fewest_right_answers_that_show_something(right, answers):
    more = more_right_answers(right, answers)
    assert binomial_interval(right + more, answers + more)[0] > 0.5
    assert binomial_interval(right + more - 1, answers + more - 1)[0] <= 0.5


def test_nothing_is_needed_where_it_is_shown():
    assert more_right_answers(18, 20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3, 2), "3 of 2 answers can't be right"),
        ((-1, 2), "right answers must be a whole number of 0 or more, not -1"),
        ((1, 2.5), "answers must be a whole number of 0 or more, not 2.5"),
        ((1, 2, 95), "a confidence level is a share between 0 and 1, not 95"),
    ],
)
def test_impossible_answers(arguments, said):
    with pytest.raises(ArgumentError) as caught:
        binomial_interval(*arguments)
    assert str(caught.value) == said
