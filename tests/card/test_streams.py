"""Blocks that are fetched while others compute: the same output, or not fetched at all."""

from __future__ import annotations

import json

import pytest

SETUP = """
import json, sys, types, torch, quantolab as ql
from quantolab.models.sample_inputs import sample_inputs
from quantolab.run import offloading
folder = {folder!r}
def denoiser(word, device="cpu"):
    return ql.load(folder, word, device=device)
def outputs(module, times=3):
    inputs = sample_inputs(module, torch.bfloat16, "cuda", side=4, tokens=8)
    with torch.no_grad():
        return [module(**inputs, return_dict=False)[0].to("cpu") for _ in range(times)]
def offloaded(module, ahead=True):
    pipe = types.SimpleNamespace(components={{"transformer": module}})
    return offloading.offload(pipe, ["transformer"], "group", "cuda", ahead=ahead)
"""


@pytest.fixture(scope="module")
def printed(test_card, pipeline_folder):
    """Run a script after `SETUP`, and read what it prints."""

    def run(script):
        card = test_card(500_000_000)
        said = card.run(SETUP.format(folder=str(pipeline_folder)) + script)
        return json.loads(said.splitlines()[-1]), card.log

    return run


def test_outputs_are_those_of_a_whole_model_on_the_card(printed):
    found, log = printed(
        """
found = {}
for word in ("none", "float8", "int8", "int4", "int2"):
    whole, parts = denoiser(word).to("cuda"), denoiser(word)
    said = offloaded(parts)
    same = [torch.equal(*pair) for pair in zip(outputs(whole), outputs(parts))]
    found[word] = [len(said), same]
print(json.dumps(found))
"""
    )
    assert found == {word: [1, [True] * 3] for word in found}
    assert len(found) == 5
    assert sum(line.get("pinned", 0) for line in log) > 0


def test_without_waiting_they_would_be_others(printed):
    """The test card shows what it is to show: a copy that nobody waited for isn't there."""
    (waited, not_waited), _ = printed(
        """
whole, parts = denoiser("none").to("cuda"), denoiser("none")
offloaded(parts)
expected = outputs(whole, 1)[0]
waited = outputs(parts)
import card_of_tests
card_of_tests.Stream.synchronize = lambda self: None
def same(given): return [torch.equal(expected, one) for one in given]
print(json.dumps([same(waited), same(outputs(parts))]))
"""
    )
    assert waited == [True] * 3
    assert not any(not_waited)


def test_what_cannot_be_fetched_ahead_is_fetched_when_it_is_needed(printed):
    found, _ = printed(
        """
from optimum.quanto import freeze, qint8, quantize
strange = denoiser("none")
quantize(strange, weights=qint8); freeze(strange)
found = {"strange": offloading.come_through_pinned(strange, "cuda")}
found["activations"] = offloading._fetches(denoiser("int8 activations=int8"), "cuda")
found["own"] = offloading._fetches(denoiser("int8"), "cuda")
found["no room there"] = bool(offloaded(denoiser("int8"), ahead=False))
offloading.free_bytes = lambda device: 1000
found["no room"] = offloading._fetches(denoiser("int8"), "cuda")
del offloading.torch.cuda.Stream
found["no streams"] = offloading._fetches(denoiser("int8"), "cuda")
print(json.dumps(found))
"""
    )
    assert found == {
        "strange": False, "activations": False, "own": True, "no room there": False,
        "no room": False, "no streams": False,
    }  # fmt: skip
