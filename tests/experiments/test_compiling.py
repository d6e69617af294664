"""`compile_report`: what compiles, what it costs, and whether it pays."""

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


def test_a_report_of_the_hardest_dtype(pipeline_folder):
    """int4 with bfloat16 is the one that plain Quanto can't compile."""
    report = compile_report(
        pipeline_folder,
        ["int4"],
        "a red cat",
        ways=["fullgraph"],
        steps=2,
        repeats=3,
        watch=lambda progress: None,
    )
    assert list(zip(report.recipe, report.way, strict=True)) == [("int4", "fullgraph")]
    assert list(report.status) == ["ok"], list(report.reason)
    assert report.graph_breaks[0] == 0
    assert report.graphs[0] >= 1
    assert report.recompilations[0] >= 0
    assert report.compile_seconds[0] > 0
    assert len(report.eager_samples[0]) == len(report.compiled_samples[0]) == 3
    assert report.difference[0] < 0.02
