"""The text encoders learn to read: what a caption says of which thing, told back from its words."""

from __future__ import annotations

import random

import pytest
import torch

from quantolab.demo.making import reading
from quantolab.demo.making.denoiser import Denoiser
from quantolab.demo.making.drawing import Spec, parse, random_caption
from quantolab.demo.making.words import LENGTH


@pytest.mark.parametrize(
    ("caption", "said", "things"),
    [
        (
            "a red heart above a white star on a blue background",
            "0 0 0 1 1 1 1 2 2 2 2 2",
            ["heart red top", "star white bottom", "background blue"],
        ),
        (
            "a red house with a blue roof right of an apple tree under a moon",
            "0 0 0 0 0 0 0 1 1 1 1 1 2 2 2 2",
            ["house red blue right", "apple tree left", "moon"],
        ),
        (
            "three pink moons on a green background with white dots",
            "0 0 0 2 2 2 2 2 2 2 2",
            ["moon pink 3", "", "background green dots white"],
        ),
        ("a large red ring", "0 0 0 0 2", ["ring red large", "", "background white"]),
    ],
)
def test_what_is_said_of_what(caption, said, things):
    assert reading.said_of(caption) == [int(n) for n in said.split()]
    told = [" ".join(str(c) for c in thing if c) for thing in reading.things(parse(caption))]
    assert told == things


def test_two_captions_never_read_the_same():
    rng = random.Random(0)
    specs = {random_caption(rng)[0] for _ in range(3000)}
    read: dict[object, Spec] = {}
    for spec in specs:
        other = read.setdefault(reading.things(spec), spec)
        # "and" puts the first figure left, as "left of" does.
        assert {other.relation, spec.relation} <= {"and", "left of"} or other == spec


def test_a_lesson_is_never_held_out_and_can_be_long():
    tokens, said, told = reading.lesson(random.Random(0), 6, length=64)
    assert tokens.shape == said.shape == (6, 64)
    assert (said[:, LENGTH:] == -1).all() and (said[:, 0] == 0).all()
    assert told.shape[:2] == (6, 3)


@pytest.mark.sweep
def test_the_encoders_learn_which_colour_belongs_to_what(tmp_path):
    """Captions that differ by an exchange of two words are told apart by every word of them."""
    torch.manual_seed(0)
    model = Denoiser(4, singles=1)
    reading.train_readers(model, 150, tmp_path, seed=0, batch=32)
    reader = reading.Reader(model)
    state = torch.load(tmp_path / "reader.pt")["average"]
    for parameter, value in zip(reader.parameters(), state, strict=True):
        parameter.data.copy_(value)
    tokens, said, told = reading.lesson(random.Random("another"), 200)
    with torch.no_grad():
        words = reader.of_words(model.text_encoder_2(tokens).last_hidden_state)
    colours = words.split([len(classes) for classes in reading._CLASSES], dim=-1)[1].argmax(-1)
    wanted = told[..., 1].gather(1, said.clamp(min=0))
    right = (colours == wanted)[said >= 0].float().mean()
    assert right > 0.9, right
