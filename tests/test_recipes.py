"""Recipes: frozen, hashable, printed as people speak, refused with a sentence."""

import copy
import dataclasses
import json
import pickle
import random
import re

import pytest

from quantolab.errors import ArgumentError
from quantolab.plain_values import from_dict, to_dict
from quantolab.recipes import Recipe, as_recipe, default_recipes, slug
from quantolab.weights import WORDS as WEIGHTS

MIXED = {"transformer": "int8", "text_encoder_2": "int4"}


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(), "int8"),
        (Recipe("none"), "none"),
        (Recipe("int4", skip=("proj_out",)), "int4 proj_out=none"),
        (Recipe("int4", skip=("a", "b")), "int4 a=none b=none"),
        (Recipe("int4", skip=("a", "b", "c")), "int4 a=none b=none c=none"),
        (
            Recipe("int2", ("a",), ("transformer", "text_encoder")),
            "transformer=int2 text_encoder=int2 a=none",
        ),
        (Recipe("float8", components=("unet",)), "unet=float8"),
    ],
)
def test_prints_as_people_speak(recipe, text):
    assert (recipe.label, str(recipe)) == (text, text)


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("int4", Recipe("int4")),
        (
            "int4 *.attn.*=int8 proj_out=none",
            Recipe("int4", layers={"*.attn.*": "int8"}, skip=("proj_out",)),
        ),
        ("transformer=int8 text_encoder_2=int4", Recipe(MIXED)),
        ("int4 text_encoder_2=int8", Recipe("int4", layers={"text_encoder_2": "int8"})),
        ("none *.attn.*=int8", Recipe("none", layers={"*.attn.*": "int8"})),
        ("int8 activations=int8", Recipe("int8", activations="int8")),
    ],
)
def test_text_and_recipe_are_inverse(text, recipe):
    assert Recipe.parse(text) == recipe == eval(repr(recipe))
    assert str(recipe) == text and hash(Recipe.parse(text)) == hash(recipe)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Recipe("int4", skip=("a", "b")), Recipe("int4", skip=("b", "a")), True),
        (Recipe("int4", skip="a"), Recipe("int4", layers={"a": "none"}), True),
        (Recipe(MIXED), Recipe(dict(reversed(MIXED.items()))), True),
        (Recipe("int8", (), ("unet",)), Recipe({"unet": "int8"}), True),
        (Recipe("int8", name="mine"), Recipe("int8"), True),
        (Recipe({"unet": "none"}), Recipe("none"), True),
        # a pattern said again counts where it is said last
        (Recipe.parse("int4 a=int8 b=int2 a=none"), Recipe.parse("int4 b=int2 a=none"), True),
        (Recipe.parse("int4 a=int8 b=int2"), Recipe.parse("int4 b=int2 a=int8"), False),
        (Recipe("int8"), Recipe("int8", (), ("transformer",)), False),
        (Recipe("int4", layers={"a": "int8"}), Recipe("int4", layers={"a": "int2"}), False),
    ],
)
def test_order_counts_only_where_it_means_something(one, other, same):
    assert (one == other) is same
    assert (str(one) == str(other)) is same


def test_skips_win_over_layers():
    recipe = Recipe("int4", skip=("a",), layers={"a": "int8", "b": "int2"})
    assert str(recipe) == "int4 b=int2 a=none"
    assert recipe.kept == ("a",)


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("int4, keeping proj_out", Recipe("int4", ("proj_out",))),
        ("int2, keeping a, b and c in unet and text_encoder",
         Recipe("int2", ("a", "b", "c"), ("unet", "text_encoder"))),
        ("float8 in unet", Recipe("float8", (), ("unet",))),
    ],
)  # fmt: skip
def test_labels_of_0_1_0_are_read(text, recipe):
    assert Recipe.parse(text) == recipe and recipe.earlier_label == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe's text is a word and terms NAME=WORD, not ''"),
        ("int8 proj_out", "'proj_out' in the recipe 'int8 proj_out' is no term"),
        ("int8 =none", "is no term"),
        ("int8 a=int9", "weights dtype of 'a' 'int9' is not known"),
        ("int4,a=none", "have no spaces, commas or '='"),
        ("int8 activations=int8 activations=float8", "gives activations more than once"),
    ],
)
def test_texts_that_mean_nothing_are_refused(text, said):
    with pytest.raises(ArgumentError, match=re.escape(said)):
        Recipe.parse(text)


def test_random_recipes_come_back_from_their_text():
    draw = random.Random(0)
    names = ["a", "b.c", "*.attn.*", "[p]roj", "transformer", "text_encoder_2", "unet.x"]
    for _ in range(300):
        chosen = draw.sample(names, draw.randint(0, len(names)))
        layers = {name: draw.choice(WEIGHTS) for name in chosen}
        weights = draw.choice([*WEIGHTS, {"unet": draw.choice(WEIGHTS), "prior": "int8"}])
        try:
            recipe = Recipe(weights, layers=layers)
        except ArgumentError:
            continue  # it quantizes nothing
        again = Recipe.parse(str(recipe))
        assert again == recipe and again.terms == recipe.terms and str(again) == str(recipe)
        assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_what_it_holds_cannot_change_and_can_be_copied():
    recipe = Recipe("int4", layers={"a": "int8"})
    with pytest.raises(TypeError):
        recipe.layers["a"] = "none"
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


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
        ({"layers": ["a"]}, "layers must be words by name, not ['a']"),
        (
            {"layers": {"a b": "int8"}},
            "layers holds 'a b': names in a recipe have no spaces, "
            "commas or '=', and 'activations' is none (a glob's ? stands for any sign)",
        ),
        (
            {"layers": {"a": "int9"}},
            "weights dtype of 'a' 'int9' is not known; allowed: none, "
            "float8, int8, int4, int2; did you mean 'int8' or 'int4' or 'int2'?",
        ),
        ({"weights": {}}, "weights names no component, and layers no layer"),
        (
            {"weights": {"unet": "int8"}, "components": "vae"},
            "components names 'vae', to which weights gives no word: it has words for unet",
        ),
        ({"name": " "}, "name must be a short text, not ' '"),
        (
            {"activations": "int4"},
            "activations dtype 'int4' is not known; allowed: float8, int8; did you mean 'int8'?",
        ),
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
        "a recipe is a Recipe, one of the words none, float8, int8, int4, int2, or a text such as "
        "'int4 proj_out=none', not 4"
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


@pytest.mark.parametrize(("word", "whose"), [("nf4", "bitsandbytes"), ("Q4_0", "GGUF")])
def test_words_of_other_backends_are_called_that(word, whose):
    for given in (word, {"transformer": word}):
        with pytest.raises(
            ArgumentError, match=rf"'{word}' is a word of another backend \({whose}"
        ):
            Recipe(given)
    with pytest.raises(ArgumentError, match="another backend"):
        Recipe.parse(f"int8 proj_out={word}")


def test_a_text_in_the_place_of_a_word_is_told_its_door():
    with pytest.raises(ArgumentError, match=r"Recipe.parse\('int4 proj_out=none'\) reads it"):
        Recipe("int4 proj_out=none")


def test_a_recipe_shows_its_text():
    shown = Recipe("int4", layers={"<a>": "int8"}, name="b & c")._repr_html_()
    assert shown == "b &amp; c: <code>int4 &lt;a&gt;=int8</code>"
