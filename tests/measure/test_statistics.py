"""Intervals and verdicts: the hand-made cases, and how often the interval holds the truth."""

import statistics
import warnings

import numpy as np
import pytest

from quantolab.measure.statistics import median_interval, verdict
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
