"""Verdicts: measured, and never better than what was measured."""

import math

import pytest
import torch
from torch import nn

import quantolab as ql
from quantolab.doctor.judging import (
    difference,
    judge_compiled,
    judge_quantized,
    judge_same,
    judge_unread,
)

ONES = torch.ones(4)


def module(skip=()):
    layers = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    return ql.quantize(layers, ql.Recipe("int8", skip))[0]


@pytest.mark.parametrize(
    ("skip", "keep", "outcome"),
    [((), (), "works"), ((), ("1",), "misleads"), (("1",), ("1",), "works"),
     (("1",), (), "misleads")],
)  # fmt: skip
def test_the_right_layers(skip, keep, outcome):
    finding = judge_quantized(module(skip), "int8", ONES, ONES, paths=("0", "1"), keep=keep)
    assert finding.outcome == outcome, finding.reason


@pytest.mark.parametrize(
    ("output", "outcome"),
    [(ONES * 1.01, "works"), (ONES * 1.2, "misleads"), (ONES * math.nan, "misleads"),
     (torch.zeros(4), "misleads")],
)  # fmt: skip
def test_a_sensible_output(output, outcome):
    finding = judge_quantized(module(), "int8", output, ONES, paths=("0", "1"))
    assert finding.outcome == outcome, finding.reason


def test_another_dtype_is_not_what_was_asked_for():
    assert judge_quantized(module(), "int4", ONES, ONES, paths=("0", "1")).outcome == "misleads"


def test_the_same_output_is_the_same_to_the_bit():
    assert judge_same(ONES, ONES.clone()).outcome == "works"
    assert judge_same(ONES.double(), ONES).outcome == "misleads"
    finding = judge_same(ONES * 1.01, ONES, {"Fast": 3, "Slow": 1}, {"Slow": 4})
    assert finding.outcome == "misleads"
    assert "by 1.00%: 3 layers no longer are Fast" in finding.reason
    assert "model.to" not in finding.reason
    for moved, said in ((ONES, True), (ONES * 1.01, False)):
        finding = judge_same(
            ONES * 1.01, ONES, {"Fast": 4}, {"Slow": 4}, moved=lambda output=moved: output
        )
        assert finding.outcome == "misleads"
        assert ("model.to(device) gives them back" in finding.reason) is said


def test_weights_that_were_never_read():
    plain = nn.Sequential(nn.Linear(4, 4))
    for output in (torch.zeros(4), ONES * 1e9, ONES * math.nan, ONES * math.inf):
        finding = judge_unread(plain, output, ONES)
        assert finding.outcome == "misleads"
        assert "output: 1 or more, or not finite" in finding.reason
    assert "output: 0.50)" in judge_unread(plain, ONES / 2, ONES).reason
    assert judge_unread(module(), ONES, ONES).outcome == "works"


def test_compiling_may_move_as_far_as_it_moves_the_unquantized():
    assert judge_compiled(0.09, 0.034).outcome == "works"
    assert judge_compiled(0.11, 0.034).outcome == "misleads"
    assert judge_compiled(math.nan, 0.034).outcome == "misleads"
    assert judge_compiled(1e-6, 0.0).outcome == "works"


def test_difference_is_relative():
    assert difference(ONES * 1.5, ONES) == pytest.approx(0.5)
