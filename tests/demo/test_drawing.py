"""The grammar of the demo model's captions, and the drawings."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from quantolab.demo.making import drawing


def _specs(n: int, seed: int = 0) -> list[drawing.Spec]:
    rng = random.Random(seed)
    return [drawing.random_spec(rng) for _ in range(n)]


def test_the_same_seed_gives_the_same_pictures():
    first = [drawing.sample(random.Random(4)) for _ in range(2)]
    assert first[0][1] == first[1][1]
    assert first[0][0].tobytes() == first[1][0].tobytes()


def test_another_seed_gives_another_picture():
    assert drawing.sample(random.Random(1))[1] != drawing.sample(random.Random(2))[1]


def test_a_drawing_has_the_promised_size():
    image, _ = drawing.sample(random.Random(0))
    assert image.size == (drawing.SIZE, drawing.SIZE)
    assert image.mode == "RGB"


def test_parse_is_the_inverse_of_caption():
    for spec in _specs(2000):
        assert drawing.parse(spec.caption) == spec


def test_every_family_is_drawn():
    assert {spec.family for spec in _specs(500)} == set(drawing.FAMILIES)


def test_every_family_can_be_asked_for():
    rng = random.Random(0)
    for family in drawing.FAMILIES:
        assert drawing.random_spec(rng, family).family == family


def test_the_vocabulary_covers_all_captions():
    known = set(drawing.vocabulary())
    assert {word for spec in _specs(2000) for word in spec.caption.split()} == known


def test_captions_use_the_right_article():
    for spec in _specs(1000):
        words = spec.caption.split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), spec.caption


@pytest.mark.parametrize(
    ("caption", "ground"),
    [("A Red Heart, on a blue background.", "blue"), ("a red heart", "white")],
)
def test_parse_forgives_case_punctuation_and_a_missing_background(caption, ground):
    spec = drawing.parse(caption)
    assert spec.ground == ground
    assert spec.figures == (drawing.Figure("heart", "red"),)


@pytest.mark.parametrize("caption", ["", "a cat", "a red heart on a red", "seven red hearts"])
def test_parse_refuses_other_captions(caption):
    with pytest.raises(ValueError, match="not a caption"):
        drawing.parse(caption)


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="unknown shape"):
        drawing.shape_mask("cat", 0.5, 0.5, 0.2)


def test_about_one_combination_in_ten_is_held_out():
    captions = {spec.caption: spec for spec in _specs(5000)}
    share = np.mean([drawing.held_out(spec) for spec in captions.values()])
    assert 0.08 < share < 0.12


def test_held_out_prompts_never_appear_in_training():
    prompts = set(drawing.held_out_prompts(300))
    rng = random.Random(7)
    training = {drawing.sample(rng)[1] for _ in range(300)}
    assert len(prompts) == 300
    assert not {drawing.parse(p) for p in prompts} & {drawing.parse(c) for c in training}


def test_held_out_prompts_depend_on_the_seed_alone():
    assert drawing.held_out_prompts(20, 3) == drawing.held_out_prompts(20, 3)
    assert drawing.held_out_prompts(20, 3) != drawing.held_out_prompts(20, 4)


def test_a_held_out_sample_is_held_out():
    rng = random.Random(0)
    for _ in range(10):
        _, caption = drawing.sample(rng, held=True)
        assert drawing.held_out(drawing.parse(caption))
