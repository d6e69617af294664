"""Recipes with a word a layer and a component: predicted bytes are held, saving keeps every bit."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

import quantolab as ql
from quantolab.errors import ArgumentError
from quantolab.files.writing import raw_bytes
from quantolab.measure.held_bytes import inner_tensors
from quantolab.models.layers import linear_layers
from quantolab.models.resolving import resolve
from quantolab.models.wording import recipe_of_words
from quantolab.planning.predict import predict_weight_bytes
from quantolab.recipes import Recipe
from quantolab.weights import WORDS

CHOSEN = ("flux", "sd3", "pixart")
# Why a random recipe is none: it keeps all, or a term does nothing (a glob for deeper layers).
REFUSED = ("nothing to quantize", "can't take effect", "has nothing to", "matches none")


@pytest.fixture(scope="module")
def modules(architectures):
    return [architectures[name].make().to(torch.bfloat16) for name in CHOSEN]


def random_recipe(draw, module):
    """Return a recipe of random patterns over a module's layers."""
    paths = [layer.path for layer in linear_layers(module)]
    layers = {}
    for _ in range(draw.randint(0, 6)):
        path = draw.choice(paths)
        parts = path.split(".")
        pattern = draw.choice([
            path, parts[-1], ".".join(parts[: draw.randint(1, len(parts))]), f"*.{parts[-1]}",
            ".".join("*" if part.isdigit() else part for part in parts),
        ])  # fmt: skip
        layers.pop(pattern, None)
        layers[pattern] = draw.choice(WORDS)
    return Recipe(draw.choice(WORDS), layers=layers)


def state(module):
    """Return every plain tensor of a module by its name, inner ones too."""
    return {
        f"{name}.{inner}": tensor
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        for inner, tensor in inner_tensors(value)
    }


def assert_same(one, other):
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert raw_bytes(tensor) == raw_bytes(other[name]), name


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.sweep)])
def test_random_recipes_hold_what_is_predicted_and_are_saved_bit_for_bit(modules, count, tmp_path):
    draw, done = random.Random(15), 0
    while done < count:
        module = draw.choice(modules)
        try:
            recipe = random_recipe(draw, module)
            resolved = resolve(module, recipe)
        except ArgumentError as error:  # it keeps everything, or only what the model keeps itself
            assert any(word in str(error) for word in REFUSED)
            continue
        if recipe.is_reference:
            continue
        predicted = predict_weight_bytes(module, resolved.words, "bfloat16")
        quantized, report = ql.quantize(copy.deepcopy(module), recipe)
        assert ql.weight_bytes(quantized) == predicted == report.weight_bytes
        assert dict(zip(report.quantized, report.words, strict=True)) == resolved.words
        assert Recipe.parse(str(recipe)) == recipe
        again = ql.load_saved(ql.save(quantized, tmp_path / str(done)), device="cpu")
        assert again.quantize_report.recipe == recipe
        assert_same(quantized, again)
        done += 1


# --- components ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipelines(pipeline_folder, architectures, tmp_path_factory):
    """Folders of three pipelines of three architectures, with one to three text encoders."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        PixArtAlphaPipeline,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    base = ql.load_pipeline(pipeline_folder, "none", dtype="float32", device="cpu")
    place = tmp_path_factory.mktemp("pipelines")
    words = {**base.text_encoder.config.to_dict(), "projection_dim": 32}
    clip = CLIPTextModelWithProjection(CLIPTextConfig(**words)).eval()
    common = {
        "vae": base.vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "tokenizer": base.tokenizer,
    }
    StableDiffusion3Pipeline(
        transformer=architectures["sd3"].make(), text_encoder=clip, text_encoder_2=clip,
        text_encoder_3=base.text_encoder_2, tokenizer_2=base.tokenizer, tokenizer_3=base.tokenizer,
        **common,
    ).save_pretrained(place / "sd3")  # fmt: skip
    PixArtAlphaPipeline(
        transformer=architectures["pixart"].make(), text_encoder=base.text_encoder_2, **common
    ).save_pretrained(place / "pixart")
    return pipeline_folder, place / "sd3", place / "pixart"


def random_recipe_of(draw, layers):
    """Return a recipe of random words for some components and for patterns in them or in all."""
    names = draw.sample(list(layers), draw.randint(1, len(layers)))
    terms = {}
    for _ in range(draw.randint(0, 5)):
        name = draw.choice(names)
        path = draw.choice(layers[name])
        parts = path.split(".")
        pattern = draw.choice([path, parts[-1], ".".join(parts[:2]), f"*.{parts[-1]}"])
        pattern = draw.choice([pattern, f"{name}.{pattern}"])
        terms.pop(pattern, None)
        terms[pattern] = draw.choice(WORDS)
    return Recipe({name: draw.choice(WORDS) for name in names}, layers=terms)


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=pytest.mark.sweep)])
def test_random_recipes_of_components_hold_what_is_planned(pipelines, count, tmp_path):
    """Planned, loaded, saved and read back, with a word of its own for each component."""
    draw, done = random.Random(16), 0
    every = {folder: ql.skip_report(folder, components=_parts(folder)) for folder in pipelines}
    while done < count:
        folder = pipelines[done % len(pipelines)]
        rows = every[folder].groupby("component", sort=False)
        try:
            recipe = random_recipe_of(draw, {name: list(part.path) for name, part in rows})
            table = ql.plan(folder, recipe)
        except ArgumentError as error:  # it keeps everything, or only what the model keeps itself
            assert any(word in str(error) for word in REFUSED)
            continue
        if recipe.is_reference:
            continue
        planned = table[table.recipe == str(recipe)].set_index("component").weight_bytes
        pipe = ql.load_pipeline(folder, recipe, device="cpu")
        for name in planned.index.drop("pipeline"):
            assert ql.weight_bytes(getattr(pipe, name)) == planned[name], (recipe, name)
        assert Recipe.parse(str(recipe)) == recipe
        again = ql.load_saved(ql.save(pipe, tmp_path / "saved"), device="cpu")
        for name in (*_parts(folder), "vae"):
            assert_same(getattr(pipe, name), getattr(again, name))
        done += 1


def _parts(folder):
    index = json.loads((folder / "model_index.json").read_text())
    return [name for name in index if name.startswith(("transformer", "text_encoder"))]


@pytest.mark.parametrize("name", CHOSEN)
def test_words_of_layers_become_a_short_recipe(architectures, name):
    draw, module = random.Random(3), architectures[name].make()
    for _ in range(8):
        words = {layer.path: draw.choice(WORDS) for layer in linear_layers(module)}
        recipe = recipe_of_words(words, name="drawn")
        found = resolve(module, recipe, strict=False)
        assert all(c.word == words[c.layer.path] or "float32" in c.why for c in found)
        assert len(recipe.terms) < len(words)


def test_a_pipeline_holds_what_is_planned(pipeline_folder):
    recipe = Recipe.parse("transformer=int8 text_encoder_2=int4 *.attn.*=float8 *.wo=none")
    pipe = ql.load_pipeline(pipeline_folder, recipe, device="cpu")
    table = ql.plan(pipeline_folder, recipe)
    rows = table[table.recipe == str(recipe)].set_index("component")
    assert rows.weights.unique().tolist() == ["float8+int8+int4"]
    assert rows.quantized["pipeline"] == "transformer, text_encoder_2"
    for name in ("transformer", "text_encoder_2"):
        assert rows.weight_bytes[name] == ql.weight_bytes(getattr(pipe, name))
    parts = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
    assert rows.weight_bytes["pipeline"] == sum(map(ql.weight_bytes, parts))
    report = ql.skip_report(pipeline_folder, recipe=recipe)
    chosen = dict(zip(report.component + "." + report.path, report.word, strict=True))
    for name in ("transformer", "text_encoder_2"):
        made = getattr(pipe, name).quantize_report
        assert {f"{name}.{p}": w for p, w in zip(made.quantized, made.words, strict=True)} == {
            path: w for path, w in chosen.items() if path.startswith(f"{name}.") and w != "none"
        }
    assert set(report.term[report.word == "float8"]) == {"*.attn.*=float8"}


def test_a_component_takes_its_share(pipeline_folder):
    recipe = "transformer=int8 text_encoder_2=int4"
    encoder = ql.load(pipeline_folder, recipe, "text_encoder_2", device="cpu")
    assert set(encoder.quantize_report.words) == {"int4"}
    with pytest.raises(ArgumentError, match="leaves text_encoder as it is: it quantizes transf"):
        ql.load(pipeline_folder, recipe, "text_encoder", device="cpu")
    both = Recipe("int8", layers={"text_encoder_2": "int4"})
    assert set(ql.load(pipeline_folder, both, device="cpu").quantize_report.words) == {"int8"}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("int4 proj_uot=int8", "did you mean 'proj_out'"),
        ("int4 text_encoder_9=int8", "matches none of the"),
        ("int4 *=none", "keeps all of them"),
        (Recipe({"text_encodr": "int8"}), "did you mean 'text_encoder'"),
    ],
)
def test_what_takes_no_effect_is_refused(pipeline_folder, recipe, said):
    for door in (ql.load, ql.load_pipeline, ql.plan):
        with pytest.raises(ArgumentError, match=said):
            door(pipeline_folder, recipe)


def test_a_module_in_memory():
    def module():
        return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))

    _, report = ql.quantize(module(), "int4 1=int8")
    assert report.words == ("int4", "int8")
    mixed = {"transformer": "int8", "text_encoder_2": "int4"}
    with pytest.raises(ArgumentError, match="must be said, component="):
        ql.quantize(module(), Recipe(mixed))
    _, report = ql.quantize(module(), Recipe(mixed), component="text_encoder_2")
    assert set(report.words) == {"int4"}
