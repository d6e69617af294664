"""Recipes of one word compared picture by picture, in words."""

import dataclasses

from quantolab.recipes import Recipe
from quantolab.records import Comparison, PictureQuality, Trial, Workload
from quantolab.report.nearer import nearer_sentences

HARD = (24.0, 33.0, 27.0, 30.0, 25.5, 31.0)  # some prompts are far harder than others


def trial(recipe, decibels, **changes):
    quality = tuple(PictureQuality("a", n, value, 0.9) for n, value in enumerate(decibels))
    return dataclasses.replace(Trial(recipe, "ok", quality=quality), **changes)


def sentences(*trials):
    work = Workload("demo", ("a",), tuple(range(6)), 1, None, (8, 8), "float32", "cpu", 1)
    return nearer_sentences(Comparison(work, trials))


def test_what_keeping_a_layer_has_bought():
    kept = Recipe("int4", ("proj_out",))
    plain = trial(Recipe("int4"), HARD)
    better = trial(kept, [v + 0.8 + 0.1 * (n % 2) for n, v in enumerate(HARD)])
    (said,) = sentences(plain, better)
    assert said.startswith(f"{kept.label} is 0.8 dB (0.8–0.9) nearer")
    assert said.endswith("than int4.")
    assert sentences(better, plain) == (said,)


def test_what_is_not_told_apart_and_few_pictures():
    plain, other = Recipe("int4"), Recipe("int4", ("proj_out",))
    swinging = [v + (1.5, -1.4)[n % 2] for n, v in enumerate(HARD)]
    (said,) = sentences(trial(plain, HARD), trial(other, swinging))
    assert said.startswith("Pictures of ")
    assert "aren't told apart" in said
    (said,) = sentences(trial(plain, HARD[:2]), trial(other, [v + 1 for v in HARD[:2]]))
    assert "1.0 dB nearer" in said
    assert said.endswith("in these pictures.")


def test_only_recipes_of_one_word_that_have_pictures():
    failed = trial(Recipe("int4", ("a",)), HARD, status="failed")
    compiled = trial(Recipe("int4", ("b",)), HARD, compiled=True)
    assert sentences(trial(Recipe("int4"), HARD), trial(Recipe("int8"), HARD)) == ()
    assert sentences(trial(Recipe("int4"), HARD), failed, compiled) == ()
