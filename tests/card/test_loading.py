"""Weights go to a card through pinned memory: the same bits as without, whatever is asked when."""

from __future__ import annotations

import json

import pytest

SETUP = """
import json, torch, quantolab as ql
from quantolab.loading import moving
moving._LEAST, moving._PIECE = 1, 20_000  # buffers are used again and again, within tensors too
folder, saved = {folder!r}, {saved!r}
def bits(module):
    def plain(value):
        return value if type(value) in (torch.Tensor, torch.nn.Parameter) else value.dequantize()
    return {{n: plain(t).to("cpu") for n, t in module.state_dict(keep_vars=True).items()}}
def same(load):
    found = []
    for moving.PINNED in (True, False):
        found.append(bits(load()))
    one, other = found
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
"""


@pytest.fixture(scope="module")
def run(test_card, pipeline_folder, tmp_path_factory):
    """Run a script after `SETUP`, read what it prints, and return the card's log too."""
    saved = str(tmp_path_factory.mktemp("saved") / "int4")

    def run(script):
        card = test_card(500_000_000, 500_000_000)
        setup = SETUP.format(folder=str(pipeline_folder), saved=saved)
        return json.loads(card.run(setup + script).splitlines()[-1]), card.log

    return run


def pinned(log):
    return [line["pinned"] for line in log if "pinned" in line]


def test_what_is_loaded_has_the_same_bits(run):
    found, log = run(
        """
words = ("float8", "int8", "int4", "int2")
found = {word: same(lambda: ql.load(folder, word, device="cuda")) for word in words}
found["as it is"] = same(lambda: ql.load(folder, "none", device="cuda", dtype="float32"))
found["cast"] = same(lambda: ql.load(folder, "int8", device="cuda:1", dtype="float16"))
print(json.dumps(found))
"""
    )
    assert found == dict.fromkeys(found, True)
    assert len(found) == 6
    assert (
        pinned(log) == [20_000, 20_000] * 6
    )  # two buffers a load, and only where they were asked for


def test_what_is_reloaded_has_the_same_bits(run):
    found, log = run(
        """
ql.save(ql.load(folder, "int4", device="cpu"), saved)
expected = bits(ql.load_saved(saved, device="cpu"))
moved = bits(ql.load_saved(saved, device="cuda"))
equal = all(torch.equal(expected[n], moved[n]) for n in expected)
print(json.dumps([equal, same(lambda: ql.load_saved(saved, device="cuda"))]))
"""
    )
    assert found == [True, True]
    assert pinned(log) == [20_000, 20_000] * 2


def test_a_buffer_that_was_not_read_yet_would_be_seen(run):
    found, _ = run(
        """
torch.cuda.Event.synchronize = lambda self: None
print(json.dumps(same(lambda: ql.load(folder, "none", device="cuda", dtype="float32"))))
"""
    )
    assert not found


def test_without_pinned_memory_it_is_done_without(run):
    found, log = run(
        """
import card_of_tests
def refuse(self, tensor):
    raise RuntimeError("CUDA error: out of memory")
card_of_tests.Card.count_as_pinned = refuse
print(json.dumps(same(lambda: ql.load(folder, "int8", device="cuda"))))
"""
    )
    assert found
    assert len(pinned(log)) == 1  # asked for once


def test_small_tensors_and_processors_need_none(run):
    found, log = run(
        """
moving._LEAST = 10**9
ql.load(folder, "int8", device="cuda")
moving._LEAST = 1
ql.load(folder, "int8", device="cpu")
print(json.dumps(True))
"""
    )
    assert found
    assert pinned(log) == []
