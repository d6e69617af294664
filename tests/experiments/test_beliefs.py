"""What is believed of layers is corrected by what recipes did, in worlds made by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from quantolab.experiments.beliefs import Beliefs
from quantolab.experiments.choosing_words import Group, Option, choose, choose_by, damages, size_of

FLOOR = 0.001
SIZES = {"none": 16, "int8": 8, "int4": 4, "int2": 2}
WEIGHT_ERRORS = {"none": 0.0, "int8": 0.008, "int4": 0.1, "int2": 0.4}


def world(seed, count=24, wrong=2.5):
    """Return groups as they were measured alone, and what their words really do among others."""
    draw = random.Random(seed)
    groups, truth = [], {}
    for n in range(count):
        size, matters = draw.randint(1, 8), 10 ** draw.uniform(-2, -0.5)
        errors = {word: matters * error for word, error in WEIGHT_ERRORS.items()}
        groups.append(Group("c", f"{n}", tuple(
            Option(word, SIZES[word] * size, WEIGHT_ERRORS[word], math.hypot(errors[word], FLOOR))
            for word in SIZES
        )))  # fmt: skip
        for word, error in errors.items():
            truth["c", f"{n}", word] = (error * wrong ** draw.uniform(-1, 1)) ** 2
    return tuple(groups), truth


def error_of(words, truth):
    return math.sqrt(sum(truth[*key, word] for key, word in words.items()) + FLOOR**2)


def test_before_anything_was_seen_it_believes_what_was_measured():
    groups, _ = world(0)
    found = Beliefs(groups, FLOOR).expected()
    for group, harm in zip(groups, found, strict=True):
        assert harm == pytest.approx(damages(group, FLOOR))


@pytest.mark.parametrize("seed", range(3))
def test_recipes_that_were_seen_give_better_ones(seed):
    """Never worse than the first choice, and better in total; no budget is overstepped."""
    groups, truth = world(seed)
    gains = []
    for share in (0.15, 0.3, 0.5):
        least, most = (sum(SIZES[w] * g.options[0].bytes // 16 for g in groups)
                       for w in ("int2", "none"))  # fmt: skip
        room = int(least + share * (most - least))
        beliefs, dice = Beliefs(groups, FLOOR), np.random.default_rng(0)
        first = choose(groups, room, FLOOR)
        errors = [error_of(first, truth)]
        beliefs.learn(first, errors[0])
        for _ in range(7):
            for harm in (beliefs.expected(), beliefs.drawn(dice), beliefs.drawn(dice)):
                words = choose_by(groups, room, harm)
                assert size_of(groups, words) <= room
                errors.append(error_of(words, truth))
                beliefs.learn(words, errors[-1])
        gains.append(20 * math.log10(errors[0] / min(errors)))
    assert min(gains) >= 0 and sum(gains) > 0.5  # decibels


def test_what_is_believed_of_a_recipe_is_what_it_was_seen_to_do():
    groups, _ = world(1)
    beliefs = Beliefs(groups, FLOOR)
    words = choose(groups, sum(g.options[2].bytes for g in groups), FLOOR)
    alone = sum(h[words[g.key]] for g, h in zip(groups, beliefs.expected(), strict=True))
    seen = 2 * alone  # they make each other worse
    for _ in range(20):
        beliefs.learn(words, math.sqrt(seen + FLOOR**2))
    believed = sum(h[words[g.key]] for g, h in zip(groups, beliefs.expected(), strict=True))
    assert believed == pytest.approx(seen, rel=0.15)


def test_broken_pictures_teach_nothing_and_nothing_does_good():
    groups, _ = world(2, count=4)
    beliefs = Beliefs(groups, FLOOR)
    before = beliefs.expected()
    everything = {group.key: "int2" for group in groups}
    beliefs.learn(everything, math.inf)
    beliefs.learn(everything, math.nan)
    assert beliefs.expected() == before
    for _ in range(20):  # as if it did nothing at all
        beliefs.learn(everything, 0.0)
    dice = np.random.default_rng(1)
    for harms in (beliefs.expected(), beliefs.drawn(dice)):
        assert all(harm > 0 for h in harms for word, harm in h.items() if word != "none")
        assert all(h["none"] == 0 for h in harms)


def test_infinite_errors_stay_the_worst():
    options = tuple(Option(w, SIZES[w], WEIGHT_ERRORS[w], 0.1) for w in SIZES)
    broken = (*options[:3], Option("int2", 2, 0.4, math.inf))
    groups = (Group("c", "a", options), Group("c", "b", broken))
    words = choose_by(groups, 12, Beliefs(groups, FLOOR).expected())
    assert words["c", "b"] != "int2"
