"""`compile_report`: what it refuses, and its arithmetic.

A whole report is tests/widgets/test_compiling.py's: its panel makes one, and compiling takes long.
"""

from __future__ import annotations

import math

import pytest

from quantolab.errors import ArgumentError
from quantolab.experiments.compiling import break_even, compile_report


@pytest.mark.parametrize(
    ("compile_seconds", "eager", "compiled", "images"),
    [(10.0, 2.0, 1.0, 10), (10.1, 2.0, 1.0, 11), (0.0, 2.0, 1.0, 0), (10.0, 1.0, 1.0, math.inf),
     (10.0, 1.0, 2.0, math.inf)],
)  # fmt: skip
def test_break_even(compile_seconds, eager, compiled, images):
    assert break_even(compile_seconds, eager, compiled) == images


def test_unknown_ways_are_refused(pipeline_folder):
    with pytest.raises(ArgumentError, match="did you mean 'fullgraph'"):
        compile_report(pipeline_folder, ways=["fullgrph"])
    with pytest.raises(ArgumentError, match="ways is empty"):
        compile_report(pipeline_folder, ways=[])
