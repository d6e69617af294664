"""Recipes: frozen, hashable, printed as people speak, refused with a sentence."""

import dataclasses
import json
import re

import pytest

from quantolab.errors import ArgumentError
from quantolab.plain_values import from_dict, to_dict
from quantolab.recipes import Recipe, as_recipe, default_recipes, slug
from quantolab.weights import WORDS as WEIGHTS


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(), "int8"),
        (Recipe("none"), "none"),
        (Recipe("int4", skip=("proj_out",)), "int4, keeping proj_out"),
        (Recipe("int4", skip=("a", "b")), "int4, keeping a and b"),
        (Recipe("int4", skip=("a", "b", "c")), "int4, keeping a, b and c"),
        (
            Recipe("int2", ("a",), ("transformer", "text_encoder")),
            "int2, keeping a in transformer and text_encoder",
        ),
        (Recipe("float8", components=("unet",)), "float8 in unet"),
    ],
)
def test_prints_as_people_speak(recipe, text):
    assert (recipe.label, str(recipe)) == (text, text)


def test_frozen_and_hashable():
    recipe = Recipe("int8", skip=["proj_out"])
    assert {recipe: 1}[Recipe("int8", ("proj_out",))] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.weights = "int4"


def test_lists_one_word_and_repetitions_become_a_tuple():
    assert Recipe("int8", skip="proj_out").skip == ("proj_out",)
    assert Recipe("int8", skip=["b", "a", "b"]).skip == ("b", "a")
    assert Recipe("int8", components="unet").components == ("unet",)


def test_survives_json():
    recipe = Recipe("int4", ("proj_out", "blocks.*.mlp"), ("transformer", "text_encoder_2"))
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_only_none_is_the_reference():
    assert [Recipe(word).is_reference for word in WEIGHTS] == [True, False, False, False, False]


def test_unknown_weights():
    with pytest.raises(ArgumentError) as caught:
        Recipe("int-8")
    assert str(caught.value) == (
        "weights dtype 'int-8' is not known; allowed: none, float8, int8, int4, int2; "
        "did you mean 'int8' or 'int4' or 'int2'?"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"weights": "none", "skip": ("proj_out",)},
            "the unquantized reference (weights 'none') has nothing to skip, "
            "but skip is ('proj_out',)",
        ),
        ({"skip": 3}, "skip must be names, not 3"),
        ({"skip": (3,)}, "skip must hold names, not 3"),
        ({"skip": ("",)}, "skip must hold names, not ''"),
        ({"components": None}, "components must be names, not None"),
    ],
)
def test_refused_with_a_sentence(values, text):
    with pytest.raises(ArgumentError) as caught:
        Recipe(**values)
    assert str(caught.value) == text


def test_as_recipe():
    assert as_recipe("int4") == Recipe("int4")
    assert as_recipe(Recipe("int4")) == Recipe("int4")
    with pytest.raises(ArgumentError) as caught:
        as_recipe(4)
    assert str(caught.value) == (
        "a recipe is a Recipe or one of the words none, float8, int8, int4, int2, not 4"
    )


def test_default_recipes_leave_the_reference_alone():
    assert default_recipes(("none", "int4"), skip=["proj_out"], components=["unet"]) == (
        Recipe("none"),
        Recipe("int4", ("proj_out",), ("unet",)),
    )
    assert tuple(r.weights for r in default_recipes()) == WEIGHTS


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("int8", "int8"),
        ("none compiled", "none-compiled"),
        ("int8, keeping proj_out and norm", "int8-keeping-proj-out-and-norm"),
    ],
)
def test_slug(label, name):
    assert slug(label) == name


def test_slugs_of_different_labels_differ():
    labels = ["int8, keeping a", "int8, keeping a*", "int8, keeping *a", "../..", "x" * 99]
    slugs = [slug(label) for label in labels]
    assert len(set(slugs)) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9.-]+", s) and not s.startswith(".") for s in slugs)
