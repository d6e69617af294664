"""Which recipe to take: advised only where the figures hold, and with its reason."""

import dataclasses
import re

import pytest

import quantolab as ql
from quantolab.errors import ArgumentError
from quantolab.records import PictureQuality


@pytest.fixture(scope="module")
def run(make):
    return make(compiled=(), size=(32, 32))


def with_floor(comparison, decibels):
    """Return a comparison whose noise floor is at so many decibels."""
    floor = tuple(PictureQuality(*p, decibels, 1.0) for p in comparison.workload.pairs)
    return dataclasses.replace(comparison, floor=floor)


def test_the_smallest_whose_pictures_are_near(run):
    chosen = ql.choose(run)
    assert chosen.recipe == "int8"
    assert str(chosen) == (
        "int8: 0.52x the bytes, 43.6 dB, 1.03x slower: take it unless seconds count more than "
        "bytes."
    )
    # By the noise floor where there is one: at 38 dB int8 is below it, float8 little above.
    chosen = ql.choose(with_floor(run, 38.0))
    assert chosen.recipe == "float8" and "1.2 times the floor" in chosen.sentence
    far = ql.choose(with_floor(run, 90.0))
    assert far.sentence.startswith("Nothing is advised: no recipe's")  # "none" is one's name
    assert re.search(r"[ :]\d+ times the floor", far.sentence), far.sentence  # not 1.9e+02
    assert far.recipe is None and "stay within 3.0x the floor. Nearest is int8" in far.sentence


def test_nothing_is_advised_where_figures_lack(make, run):
    assert "no unquantized recipe ran here" in str(ql.choose(make(("int8",), compiled=())))
    only = dataclasses.replace(run, trials=run.trials[:1])
    assert ql.choose(only).recipe is None
    few = make(("none", "int8"), compiled=(), repeats=3, size=(32, 32))
    assert str(ql.choose(few)).endswith(
        "no verdict on its speed: take it where bytes are what counts."
    )


def test_a_target_is_met(run):
    table = ql.results_table(run).set_index("recipe")
    memory = table.private_bytes.fillna(table.peak_bytes)
    for limit in sorted(memory):
        chosen = ql.choose(run, memory=int(limit))
        inside = table.psnr_db.fillna(float("inf"))[memory <= limit]
        assert chosen.recipe == inside.idxmax()
    for least in (10, 25, 30, 40):
        chosen = ql.choose(run, psnr_db=least)
        assert table.psnr_db[chosen.recipe] >= least
        smaller = table[table.weight_bytes < table.weight_bytes[chosen.recipe]]
        assert not (smaller.psnr_db >= least).any()
    assert ql.choose(run, fastest=True).recipe == table.latency_seconds.idxmin()
    quick = ql.choose(run, memory="415MB", fastest=True)
    assert quick.recipe == table.latency_seconds[memory <= 415e6].idxmin()
    assert "the fastest of" in str(quick)


def test_what_nothing_meets_says_how_near_it_comes(run):
    none = ql.choose(run, memory="1MB", psnr_db=90)
    assert none.recipe is None
    assert str(none).startswith("No recipe has at most 1.00 MB of memory and at least 90.0 dB; ")
    assert "411 MB (int2)" in str(none) and "int8 at 43.6 dB" in str(none)


def test_seconds_that_are_not_told_apart_are_named(make):
    close = make(("none", "int4", "int2"), compiled=(), size=(32, 32))  # of 241 and 239 ms
    fast = ql.choose(dataclasses.replace(close, trials=close.trials[1:]), fastest=True)
    assert "aren't told apart" in str(fast)


@pytest.mark.parametrize("wrong", [{"memory": "much"}, {"memory": 0}, {"psnr_db": float("inf")}])
def test_what_is_no_target_is_refused(run, wrong):
    with pytest.raises(ArgumentError):
        ql.choose(run, **wrong)
