"""The blind test without a browser: what it shows, what it counts, what it says."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from quantolab.errors import ArgumentError
from quantolab.measure.statistics import binomial_interval
from quantolab.widgets.blind import BlindTest, blind_result


def shown(test):
    """Return the two pictures on show as pixels, left and right."""
    return [np.asarray(Image.open(io.BytesIO(d))) for d in test.question._shown["pictures"]]


def find(comparison, pixels):
    """Return the places and labels that have these pixels."""
    return {key for key, p in comparison.images.items() if np.array_equal(np.asarray(p), pixels)}


@pytest.mark.parametrize(
    ("right", "answers", "sentence"),
    [
        (
            6, 10,
            "You can't be told apart from guessing yet: 6 of 10 right, 26 % to 88 %. 7 right "
            "answers in a row from here would show that you see a difference.",
        ),
        (
            18, 20,
            "You can tell int4 from the reference: 18 of 20 right, 68 % to 99 %, and guessing "
            "gives 50 %.",
        ),
        (
            1, 12,
            "You see a difference, but take the reference for int4: 1 of 12 right, 0 % to 38 %, "
            "and guessing gives 50 %.",
        ),
        (
            0, 0,
            "No answers yet. 6 right answers in a row would show that int4 can be told from the "
            "reference.",
        ),
        (
            5, 5,
            "You can't be told apart from guessing yet: 5 of 5 right, 48 % to 100 %. 1 right "
            "answer in a row from here would show that you see a difference.",
        ),
    ],
)  # fmt: skip
def test_sentences(right, answers, sentence):
    found = blind_result("int4", right, answers)
    assert found.sentence == sentence
    assert (found.low, found.high) == binomial_interval(right, answers)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.right = 10


def test_answers_are_counted_against_what_was_shown(comparison):
    test = BlindTest(comparison, seed=3)
    assert test.recipe.options == ("float8", "int8", "int8 compiled", "int4")
    right = 0
    for turn in range(12):
        sides = [find(comparison, pixels) for pixels in shown(test)]
        [left], [other] = ({k for k in s if k[0] in ("none", "int4")} for s in sides)
        assert {left[0], other[0]} == {"none", "int4"} and left[1:] == other[1:]
        answer = 1 + turn % 2
        wins = (left, other)[answer - 1][0] == "int4"
        assert test.answer(answer) is wins
        right += wins
        said = f"{'right' if wins else 'wrong'}: picture {1 if left[0] == 'int4' else 2} was int4."
        assert f"Your last answer was {said}" in test.said.value
    assert (test.result.recipe, test.result.right, test.result.answers) == ("int4", right, 12)
    assert test.result.sentence.replace("'", "&#x27;") in test.said.value


def test_no_pair_comes_again_before_all_were_shown(comparison):
    test = BlindTest(comparison, seed=0)
    places = []
    for _ in range(40):
        places.append(test._score.place)
        test.answer(1)
    for start in range(0, 40, 4):
        assert set(places[start : start + 4]) == set(comparison.workload.pairs)
    assert all(a != b for a, b in itertools.pairwise(places))
    assert "what you remember counts" in test.said.value


@pytest.mark.long
def test_chance_is_even_and_can_be_repeated(comparison):
    def sides(seed, questions=20):
        test = BlindTest(comparison, seed=seed)
        found = []
        for _ in range(questions):
            found.append((test._score.place, test._score.side))
            test.answer(1)
        return found

    assert sides(5) == sides(5)
    assert sides(5) != sides(6)
    # 200 tosses of a coin: beyond 4.5 standard deviations in fewer than one of 100,000 runs.
    tossed = sides(7, questions=200)
    assert abs(sum(side == 1 for _, side in tossed) - 100) < 32
    by_place = {place for place, side in tossed if side == 1}
    assert by_place == set(comparison.workload.pairs)


def test_nothing_tells_the_pictures_apart_but_their_pixels(comparison):
    test = BlindTest(comparison, seed=1)
    for _ in range(8):
        one, other = test.question._shown["pictures"]
        assert len(one) == len(other)
        state = {k: v for k, v in test.question._shown.items() if k != "pictures"}
        assert set(state) == {"turn", "note", "size"}
        assert state == {"turn": test._score.turn, "note": "", "size": [128, 128]}
        test.answer(2)


def test_a_second_press_is_no_second_answer(comparison):
    test = BlindTest(comparison, seed=1)
    message = {"answer": 1, "turn": test.question._shown["turn"]}
    test.question._handle_custom_msg(message, [])
    test.question._handle_custom_msg(message, [])
    assert test.result.answers == 1


def test_each_recipe_has_a_score_of_its_own(comparison):
    test = BlindTest(comparison, seed=1)
    test.answer(1)
    test.recipe.value = "float8"
    assert (test.result.recipe, test.result.answers) == ("float8", 0)
    test.answer(1)
    test.answer(2)
    test.recipe.value = "int4"
    assert test.result.answers == 1
    test.again.click()
    assert test.result.answers == 0
    test.recipe.value = "float8"
    assert test.result.answers == 2


def test_updates_keep_question_and_score(comparison, make):
    early = dataclasses.replace(comparison, trials=comparison.trials[:2])
    test = BlindTest(early, seed=1)
    assert test.recipe.value == "float8"
    test.answer(1)
    before = test.question._shown
    test.update(comparison)
    assert (test.recipe.value, test.result.answers) == ("float8", 1)
    assert test.question._shown == before
    test.update(make(["none", "float8"], compiled=(), seeds=(3,)))
    assert test.result.answers == 0
    assert test._score.place[1] == 3


def test_nothing_to_tell_apart(comparison, make):
    for found in (None, make(["none"], compiled=()), make(["int8", "int4"], compiled=())):
        test = BlindTest(found)
        assert test.result is None
        assert test.question._shown["pictures"] == []
        assert "unquantized reference (none)" in test.question._shown["note"]
        with pytest.raises(ArgumentError, match="there is no question to answer"):
            test.answer(1)
    test.update(comparison)
    assert test.result.recipe == "int4"
    with pytest.raises(ArgumentError, match=r"the answer is 1 \(left\) or 2 \(right\), not 3"):
        test.answer(3)
    assert "ql-blind" in test._dom_classes
