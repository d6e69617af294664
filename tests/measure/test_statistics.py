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
    verdict,
)
from quantolab.records import Timing


@pytest.mark.parametrize("samples", [(), (1.0,), (1.0, 2.0)])
def test_too_few_samples_have_no_interval(samples):
    assert median_interval(samples) is None


def test_constant_samples_have_an_interval_of_no_width_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert median_interval((0.25,) * 5) == (0.25, 0.25)


def test_three_samples_give_their_range():
    # 7 of 27 resamples of three have the smallest as median, far more than 2.5 %.
    assert median_interval((3.0, 1.0, 2.0)) == (1.0, 3.0)


def test_the_same_samples_give_the_same_interval():
    samples = tuple(np.random.default_rng(5).lognormal(size=20))
    assert median_interval(samples) == median_interval(samples)
    assert median_interval(samples, seed=1) == median_interval(list(samples), seed=1)


def test_the_interval_holds_the_sample_median_and_stays_inside_the_range():
    for seed in range(20):
        samples = tuple(np.random.default_rng(seed).lognormal(size=9))
        low, high = median_interval(samples)
        assert min(samples) <= low <= statistics.median(samples) <= high <= max(samples)


def test_less_confidence_is_narrower():
    samples = tuple(np.random.default_rng(0).normal(10, 1, size=30))
    low, high = median_interval(samples, 0.95)
    inner_low, inner_high = median_interval(samples, 0.5)
    assert low < inner_low < inner_high < high


@pytest.mark.parametrize(
    ("size", "least", "most"),
    # The range of n samples holds the median with probability 1 - 2**(1 - n): three samples can't
    # do better than 75 %. 400 experiments have a standard error of 1.1 points at 95 %, 2.2 at 75 %.
    [(3, 0.67, 0.83), (5, 0.88, 0.98), (15, 0.90, 0.99), (40, 0.90, 0.99)],
)
def test_coverage_of_skewed_timings(size, least, most):
    random = np.random.default_rng(2026)
    held = 0
    for _ in range(400):
        low, high = median_interval(tuple(random.lognormal(0.0, 0.3, size)))
        held += low <= 1.0 <= high  # the median of this lognormal is 1
    assert least <= held / 400 <= most


def test_verdicts():
    steady = Timing((1.00, 1.01, 0.99, 1.00, 1.02))
    slower = Timing((1.32, 1.33, 1.31, 1.32, 1.34))
    assert verdict(steady, slower) == "1.32x slower"
    assert verdict(slower, steady) == "1.32x faster"
    assert verdict(steady, Timing((1.01, 1.00, 1.02, 0.99, 1.00))) == "no difference shown"
    assert verdict(steady, steady) == "no difference shown"


def test_touching_intervals_show_no_difference():
    assert verdict(Timing((1.0, 2.0, 3.0)), Timing((3.0, 4.0, 5.0))) == "no difference shown"


def test_a_shown_difference_never_reads_as_one():
    nearly = Timing((1.00001, 1.00001, 1.00001))
    assert verdict(Timing((1.0, 1.0, 1.0)), nearly) == "under 1.01x slower"


@pytest.mark.parametrize("few", [(), (1.0,), (1.0, 9.0)])
def test_no_verdict_on_too_few_samples(few):
    enough = Timing((1.0, 1.0, 1.0))
    assert verdict(enough, Timing(few)) is None
    assert verdict(Timing(few), enough) is None


def test_warm_up_is_no_part_of_the_verdict():
    cold = Timing((1.0, 1.0, 1.0), warmup=(99.0,))
    assert verdict(Timing((1.0, 1.0, 1.0)), cold) == "no difference shown"


@pytest.mark.parametrize("few", [3, 5, 10])
def test_two_timings_of_the_same_thing_are_seldom_told_apart(few):
    # Ranges of three and three are disjoint by chance in 2 of C(6, 3) = 20 cases.
    random = np.random.default_rng(7)

    def drawn():
        return Timing(tuple(random.normal(1, 0.05, few)))

    told_apart = sum(verdict(drawn(), drawn()) != "no difference shown" for _ in range(200))
    assert told_apart / 200 <= (0.18 if few == 3 else 0.06)


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
