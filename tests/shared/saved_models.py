"""What the tests of saved models share: inputs, comparisons, fresh processes."""

from __future__ import annotations

import os

import torch
from zygote import PLAIN, run_code

from quantolab.models.sample_inputs import first_output, sample_inputs
from quantolab.saved.pieces import pieces

QUANTIZED = ("float8", "int8", "int4", "int2")


def stored(module):
    """Every tensor that a module's file would hold, as bytes, by name."""
    return {
        spec.name: (spec.dtype, spec.shape, value.contiguous().view(-1).view(torch.uint8).clone())
        for piece in pieces(module)
        for spec, value in zip(piece.specs, piece.values(), strict=True)
    }


def assert_same_weights(one, other, only=""):
    one, other = (
        {name: parts for name, parts in stored(module).items() if only in name}
        for module in (one, other)
    )
    assert one.keys() == other.keys()
    for name, (dtype, shape, data) in one.items():
        assert (dtype, shape) == other[name][:2], name
        assert torch.equal(data, other[name][2]), name


def output_of(module, dtype="bfloat16"):
    return first_output(module, sample_inputs(module, getattr(torch, dtype)))


def run_fresh(code, *arguments):
    """Run Python code in a process that hasn't imported quantolab, but Diffusers.

    Returns the process that ended.
    """
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return run_code(code, *arguments, environment=environment, door=PLAIN)
