"""What layers are worth: measured on a tiny FLUX, resumed, and turned into recipes that fit."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
from collections import Counter

import pytest
import torch

import quantolab as ql
from quantolab.backends import layer_bytes
from quantolab.errors import ArgumentError, Cancelled, UnsupportedError
from quantolab.experiments import advising
from quantolab.experiments.advising import advice_cost, advice_of, advise
from quantolab.experiments.choosing_words import Group, Option, choose, damages, size_of
from quantolab.experiments.jobs import typical
from quantolab.experiments.sensitivity import block_of, sensitivity
from quantolab.models.layers import linear_layers
from quantolab.recipes import Recipe
from quantolab.report.advised import AdviceReport

QUIET = {"watch": lambda progress: None}
ASKED = {
    "steps": 2,
    "inputs": 1,
    "dtype": "float32",
    "device": "cpu",
    "prompt": "a red cat",
    **QUIET,
}


FEW = {**QUIET, "pictures": 2}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("sensitivity") / "rows.jsonl"


@pytest.fixture(scope="module")
def table(pipeline_folder, out):
    return sensitivity(pipeline_folder, ["int8", "int4"], out=out, **ASKED)


@pytest.fixture(scope="module")
def denoiser(pipeline_folder):
    return ql.load(pipeline_folder, "none", dtype="float32", device="cpu")


# -- the table


def test_every_layer_has_a_row_a_dtype(table, denoiser):
    layers = linear_layers(denoiser)
    assert list(table.path) == [layer.path for layer in layers] * 2
    assert list(table.weights) == ["int8"] * len(layers) + ["int4"] * len(layers)
    assert set(table.component) == {"transformer"}
    assert (table.saved_bytes == table.bytes_none - table.bytes_quantized).all()
    for row, layer in zip(table.to_dict("records"), [*layers, *layers], strict=True):
        assert row["bytes_quantized"] == layer_bytes(layer, row["weights"], "float32")
    assert set(table.inputs) == {1}
    assert set(table["size"]) == {"32x32"}
    assert set(table.prompt) == {"a red cat"}


def test_weight_errors_are_those_of_the_arithmetic(table, denoiser):
    """int8 by hand: rounded to 127 steps of the largest value of each row."""
    rows = table[table.weights == "int8"].set_index("path")
    for path in ("proj_out", "transformer_blocks.0.attn.to_q"):
        weight = denoiser.get_submodule(path).weight
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        error = (weight / scale).round() * scale - weight
        expected = (error.norm() / weight.norm()).item()
        assert rows.weight_error[path] == pytest.approx(expected, rel=1e-3)


def test_fewer_bits_make_larger_errors(table):
    by = {word: rows.set_index("path") for word, rows in table.groupby("weights")}
    assert (by["int4"].weight_error > 5 * by["int8"].weight_error).all()
    assert (by["int4"].output_error > by["int8"].output_error).mean() > 0.9
    assert (table.output_error > table.output_floor).mean() > 0.9  # rounding is far below
    assert 0 < table.output_floor.iloc[0] < 1e-4


def test_the_last_layer_alone_changes_the_output_as_its_weight_does(table):
    """No layer follows ``proj_out``, so what it adds to the output is its own error."""
    row = table[(table.path == "proj_out") & (table.weights == "int4")].iloc[0]
    assert row.output_error == pytest.approx(row.weight_error, rel=0.3)


def test_a_run_that_was_ended_goes_on(pipeline_folder, table, out, tmp_path):
    lines = out.read_text().splitlines()
    assert len(lines) == 1 + len(table) + 1  # what was asked, the rows, the conditions
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join(lines[:21]) + "\n" + lines[21][:30])  # cut in the middle of a line
    seen = []
    asked = {**ASKED, "watch": seen.append}
    again = sensitivity(pipeline_folder, ["int8", "int4"], out=half, **asked)
    assert again.equals(table)
    kept = sum('"paths"' in line for line in lines[:21])
    assert {p.total for p in seen} == {0, len(table) - kept}  # only what was missing
    assert sorted(half.read_text().splitlines()) == sorted(lines)


def test_results_of_another_call_are_not_mixed(pipeline_folder, out, table):
    before = out.read_text()
    with pytest.raises(ArgumentError, match="holds results of another call"):
        sensitivity(pipeline_folder, ["int8"], out=out, **{**ASKED, "prompt": "a dog"})
    assert out.read_text() == before


def test_blocks_of_a_text_encoder(pipeline_folder):
    recipe = ql.Recipe("int2", skip=("*.wo",))
    table = sensitivity(
        pipeline_folder, recipe, component="text_encoder_2", groups="blocks", **ASKED
    )
    assert list(table.path) == ["encoder.block.0", "encoder.block.1"]
    assert list(table.layers) == [5, 5]  # q, k, v, o, wi
    assert (table.output_error > table.output_floor).all()


def test_a_run_can_be_cancelled(pipeline_folder):
    cancel = threading.Event()
    asked = {**ASKED, "watch": lambda p: p.done >= 1 and cancel.set(), "cancel": cancel}
    asked["seed"] = 5  # what was measured before is used again
    with pytest.raises(Cancelled):
        sensitivity(pipeline_folder, ["int8"], **asked)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"groups": "blcks"}, "did you mean 'blocks'"),
        ({"recipes": ["none"]}, "names nothing to quantize"),
        ({"recipes": ["int8", ql.Recipe("int8", ("proj_out",))]}, "more than once"),
        ({"inputs": 0}, "inputs must be a whole number of 1 or more"),
        ({"component": "transfromer"}, "did you mean 'transformer'"),
    ],
)
def test_bad_requests_are_refused(pipeline_folder, arguments, said):
    with pytest.raises(ArgumentError, match=said):
        sensitivity(pipeline_folder, **arguments)


def test_blocks():
    assert block_of("transformer_blocks.3.attn.to_out.0") == "transformer_blocks.3"
    assert block_of("encoder.block.11.layer.0.SelfAttention.q") == "encoder.block.11"
    assert block_of("time_text_embed.timestep_embedder.linear_1") == "time_text_embed"
    assert block_of("proj_out") == "proj_out"
    assert block_of("to_out.0") == "to_out"


# -- advice


@pytest.fixture(scope="module")
def sizes(pipeline_folder):
    rows = ql.plan(pipeline_folder, dtype="float32").query("component == 'transformer'")
    return dict(zip(rows.recipe, rows.weight_bytes, strict=True))


def fits(pipeline_folder, recipe, budget):
    module = ql.load(pipeline_folder, recipe, dtype="float32", device="cpu")
    return ql.weight_bytes(module) <= budget


@pytest.mark.parametrize("share", (0.0, 0.1, 0.5, 0.9, 1.5))
def test_what_is_advised_fits(pipeline_folder, table, sizes, share):
    budget = int(sizes["int4"] + share * (sizes["int8"] - sizes["int4"]))
    recipe = advise(pipeline_folder, budget, table=table, check=False, dtype="float32")
    assert fits(pipeline_folder, recipe, budget)
    assert Recipe.parse(str(recipe)) == recipe
    assert recipe.name and advice_of(recipe).weight_bytes <= budget
    if share == 0:
        assert recipe != ql.Recipe("int2")


def test_more_bytes_never_predict_more_damage(pipeline_folder, table, sizes):
    budgets = [int(sizes["int4"] * (1 + i / 5)) for i in range(8)]
    asked = {"table": table, "check": False, "dtype": "float32"}
    given = [advice_of(advise(pipeline_folder, budget, **asked)) for budget in budgets]
    errors = [advice.predicted_error for advice in given]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]


def test_the_choice_is_the_best_of_all():
    """Every choice of three groups, tried by hand."""
    draw = random.Random(0)
    for _ in range(20):
        groups = tuple(
            Group("c", f"{n}", tuple(
                Option(word, size * draw.randint(1, 9), draw.random(), draw.random() / size)
                for word, size in (("none", 16), ("int8", 8), ("int4", 4))
            ))
            for n in range(3)
        )  # fmt: skip
        harm = [damages(group, 0.001) for group in groups]
        every = list(itertools.product(*(group.options for group in groups)))
        budget = sorted(sum(o.bytes for o in options) for options in every)[len(every) // 2]

        def cost(options, harm=harm):
            return sum(h[option.word] for h, option in zip(harm, options, strict=True))

        best = min(cost(o) for o in every if sum(x.bytes for x in o) <= budget)
        words = choose(groups, budget, 0.001)
        assert size_of(groups, words) <= budget
        assert cost([g.option(words[g.key]) for g in groups]) == pytest.approx(best, rel=1e-4)


def test_errors_near_rounding_are_told_by_coarser_words():
    group = Group("c", "p", (
        Option("none", 16, 0, 0), Option("int8", 8, 0.01, 0.003), Option("int4", 4, 0.1, 0.02),
    ))  # fmt: skip
    found = damages(group, floor=0.004)
    assert found["none"] == 0
    assert found["int4"] == pytest.approx(0.02**2 - 0.004**2)
    assert found["int8"] == pytest.approx(found["int4"] / 100)  # weights ten times as near
    assert 0 < damages(group, floor=0.1)["int8"] < damages(group, floor=0.1)["int4"]


def test_the_advice_is_better_than_the_plain_dtype(pipeline_folder, table, sizes, denoiser):
    """Measured anew, on inputs that the advice has not seen."""
    from quantolab.models.sample_inputs import first_output, sample_inputs

    budget = (sizes["int4"] + sizes["int8"]) // 2
    recipe = advise(pipeline_folder, budget, table=table, dtype="float32", **FEW)
    inputs = sample_inputs(denoiser, torch.float32)
    reference = first_output(denoiser, inputs)

    def error(recipe):
        module = ql.load(pipeline_folder, recipe, dtype="float32", device="cpu")
        assert ql.weight_bytes(module) <= budget
        return (first_output(module, inputs) - reference).norm() / reference.norm()

    assert error(recipe) < error("int4")


def test_it_is_never_worse_in_its_own_measure(pipeline_folder, table, sizes):
    """Neither than a plain dtype that fits, nor than what was given for fewer bytes."""
    errors = []
    for budget in (sizes["int4"], (sizes["int4"] + sizes["int8"]) // 2, sizes["int8"]):
        recipe = advise(pipeline_folder, budget, table=table, dtype="float32", **FEW)
        advice = advice_of(recipe)
        assert advice.measured_error == min(error for _, _, error in advice.tried)
        assert all(held <= budget for _, held, _ in advice.tried)
        fitting = {word for word in ("int8", "int4") if sizes[word] <= budget}
        assert fitting <= {text for text, _, _ in advice.tried}
        errors.append(advice.measured_error)
    assert errors == sorted(errors, reverse=True)


def test_a_card_leaves_what_the_other_parts_do_not_take(pipeline_folder, table, sizes):
    rows = ql.plan(pipeline_folder, "none", dtype="float32").set_index("component").weight_bytes
    card = int(rows["pipeline"] - rows["transformer"] + sizes["int8"])
    asked = {"table": table, "check": False, "dtype": "float32"}
    recipe = advise(pipeline_folder, fits=card, **asked)
    assert advice_of(recipe).budget_bytes == sizes["int8"]
    assert recipe == advise(pipeline_folder, sizes["int8"], **asked)
    with pytest.raises(ArgumentError, match="the other parts of the pipeline, which components"):
        advise(pipeline_folder, fits=card - sizes["int8"], **asked)


@pytest.mark.sweep
def test_small_models_are_looked_at_in_float32(pipeline_folder, tmp_path):
    """Errors far below what rounding to bfloat16 does are told apart, on any processor."""
    held = ql.plan(pipeline_folder, ["int8"]).query("component == 'transformer'").weight_bytes
    asked = {**ASKED, "dtype": "bfloat16", "groups": "blocks", "pictures": 3}
    kept = tmp_path / "kept.jsonl"
    recipe = advise(pipeline_folder, int(1.3 * held.iloc[-1]), out=kept, **asked)
    advice = advice_of(recipe)
    assert 0 < advice.output_floor < 1e-4 < advice.picture_floor
    assert all(choice.error > advice.output_floor for choice in advice.choices if choice.error)
    said = ql.advice_report(recipe).sentences()
    assert any("rounding comes on top" in sentence for sentence in said)
    # Single blocks: coarse words in two of the three pictures, fine ones in calls; recipes in all.
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    sets = [line for line in lines if "paths" in line]
    looks = Counter(
        (line.get("pictures", 0), "recipe" if line.get("words") else line["weights"])
        for line in sets
    )
    blocks = len(advice.choices)
    assert looks.pop((3, "recipe")) == len(advice.tried)
    assert looks == {(2, "int4"): blocks, (2, "int2"): blocks,
                     (0, "int8"): blocks, (0, "float8"): blocks}  # fmt: skip


@pytest.mark.parametrize("computes", [True, False])
def test_pictures_with_rounding_decide_where_errors_are_below_it(
    pipeline_folder, monkeypatch, computes
):
    monkeypatch.setattr(advising, "processor_computes", lambda dtype: computes)
    held = ql.plan(pipeline_folder, ["none"]).query("component == 'transformer'").weight_bytes
    asked = {**ASKED, "dtype": "bfloat16", "groups": "blocks", "pictures": 2}
    advice = advice_of(advise(pipeline_folder, int(held.iloc[-1]) - 1, **asked))
    below = [error for _, _, error in advice.tried if error < advice.picture_floor]
    assert len(below) > 1 and advice.measured_error in below
    if computes:
        assert advice.finals == min(len(below), 12)
        assert advice.rounded_error > min(below)
    else:
        assert advice.finals == 0 and advice.rounded_error is None
        assert advice.measured_error == min(below)
    said = " ".join(AdviceReport(advice).sentences())
    assert ("with errors below that made the pictures with rounding" in said) == computes


def test_no_picture_decides_for_all():
    """Errors of pictures are told by their mean PSNR."""
    errors = (0.1, 0.01, 0.001)
    psnr = [-20 * math.log10(error) for error in errors]
    assert -20 * math.log10(typical(errors)) == pytest.approx(sum(psnr) / 3)
    before, after = typical((0.02, 0.02, 0.2)), typical((0.01, 0.02, 0.2))
    assert after / before == pytest.approx(0.5 ** (1 / 3))  # the small one counts like the large
    assert 0 < typical((0.1, 0.0)) < typical((0.1, 0.001))
    assert typical((0.0, 0.0)) == typical(()) == 0
    assert typical((0.1, math.inf)) == math.inf


def test_pictures_are_told_by_the_typical_one(pipeline_folder, tmp_path):
    kept = tmp_path / "kept.jsonl"
    budget = ql.plan(pipeline_folder, ["int4"]).query("component == 'transformer'").weight_bytes
    advise(pipeline_folder, int(budget.iloc[-1]), out=kept, groups="blocks", pictures=3, **ASKED)
    for line in map(json.loads, kept.read_text().splitlines()):
        if line.get("pictures") and "paths" in line:
            assert line["output_error"] == pytest.approx(typical(line["by_input"]))


def test_several_components_share_the_bytes(pipeline_folder):
    names = ("transformer", "text_encoder_2")
    rows = ql.plan(pipeline_folder, ["int8"], dtype="float32").set_index(["component", "recipe"])
    budget = int(sum(rows.weight_bytes[name, "int8"] for name in names))
    recipe = advise(pipeline_folder, budget, components=names, groups="blocks", pictures=2, **ASKED)
    advice = advice_of(recipe)
    assert {choice.component for choice in advice.choices} == set(names)
    assert all(choice.error > 0 for choice in advice.choices if choice.word != "none")
    pipe = ql.load_pipeline(pipeline_folder, recipe, dtype="float32", device="cpu")
    held = sum(ql.weight_bytes(getattr(pipe, name)) for name in names)
    assert held == advice.weight_bytes <= budget


def test_words_of_another_backend_share_the_bytes(pipeline_folder):
    pytest.importorskip("sdnq", reason="pip install 'quantolab[sdnq]'")
    words = ("sdnq:int8", "sdnq:uint4-g64")
    rows = ql.plan(pipeline_folder, words, dtype="float32").query("component == 'transformer'")
    budget = sum(rows.set_index("weights").weight_bytes[list(words)]) // 2
    asked = {**ASKED, "groups": "blocks", "pictures": 2, "weights": words}
    recipe = advise(pipeline_folder, budget, **asked)
    assert set(recipe.words) <= {*words, "none"} and "sdnq:uint4-g64" in recipe.words
    assert len({choice.word for choice in advice_of(recipe).choices}) > 1
    module = ql.load(pipeline_folder, recipe, dtype="float32", device="cpu")
    assert ql.weight_bytes(module) == advice_of(recipe).weight_bytes <= budget
    assert ql.Recipe.parse(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (("sdnq:int8", "int4"), "names words of quanto and sdnq: a component is quantized by one"),
        ("none", "names no word to choose"),
        ("int5", "weights 'int5' is not known"),
    ],
)
def test_words_that_cannot_be_chosen_among_are_refused(pipeline_folder, weights, said):
    for ask in (advice_cost, lambda *a, **k: advise(*a, 10**6, **k)):
        with pytest.raises(ArgumentError, match=said):
            ask(pipeline_folder, weights=weights)


def test_a_word_that_no_layer_can_have_is_refused_before_any_work(pipeline_folder):
    pytest.importorskip("torchao", reason="pip install 'quantolab[torchao]'")
    with pytest.raises(UnsupportedError, match="can't be torchao:int4: torchao has no int4"):
        advise(pipeline_folder, 10**6, weights="torchao:int4", device="cpu")
    # Groups of 32 divide neither 16 nor 4 columns: those layers have no such word.
    words = ("torchao:int8", "torchao:int8-g32")
    shapes = advising.Shapes(
        advising.find_model(pipeline_folder), ("transformer",), "bfloat16", words
    )
    one, other = (shapes.taking("transformer", word) for word in words)
    assert {layer.path for layer in one} - {layer.path for layer in other} == {"x_embedder"}
    assert shapes.uniform(words[1]) < shapes.held({})


def test_rows_of_a_table_limit_the_words(pipeline_folder, table, sizes):
    asked = {"table": table, "check": False, "dtype": "float32"}
    recipe = advise(pipeline_folder, sizes["int8"], weights="int8", **asked)
    assert set(recipe.words) <= {"int8", "none"}
    with pytest.raises(
        ArgumentError, match="the table has no rows of int2; it knows int8 and int4"
    ):
        advise(pipeline_folder, sizes["int8"], weights=["int8", "int2"], **asked)


def test_what_it_costs_is_told_without_weights():
    said = advice_cost("FLUX.1-dev")
    assert "62 blocks, 2 words and 4 pictures of 4 steps, 2 more words and 8 inputs, are " in said
    assert "2976 forwards, then about 384 for 24 recipes" in said  # 62 * (2*4*4 + 2*8)
    said = advice_cost("FLUX.1-dev", pictures=0)
    assert "62 blocks, 4 words and 8 inputs are 1984 forwards" in said


def test_what_fits_unquantized_stays_so(pipeline_folder, sizes):
    assert advise(pipeline_folder, sizes["none"], dtype="float32") == ql.Recipe("none")


def test_what_cannot_fit_is_refused(pipeline_folder, sizes):
    with pytest.raises(ArgumentError, match=f"the least is int2 with {sizes['int2']} bytes"):
        advise(pipeline_folder, sizes["int2"] - 1, dtype="float32")


def test_bad_advice_requests_are_refused(pipeline_folder, table, sizes):
    with pytest.raises(ArgumentError, match="a budget is needed"):
        advise(pipeline_folder)
    with pytest.raises(ArgumentError, match="lacks component"):
        advise(pipeline_folder, sizes["int4"], table=table[["path"]], dtype="float32")
    with pytest.raises(ArgumentError, match="compute_dtype is 'float32', not 'bfloat16'"):
        advise(pipeline_folder, sizes["int4"], table=table)
    for other in (table.iloc[1:], table[table.weights == "int8"].iloc[::2]):
        with pytest.raises(ArgumentError, match="not of all layers of transformer"):
            advise(pipeline_folder, sizes["int8"], table=other, dtype="float32")
    with pytest.raises(ArgumentError, match="not of all layers of transformer of 'demo'"):
        advise("demo", "10MB", table=table, dtype="float32")


def test_infinite_errors_are_avoided():
    options = (Option("none", 16, 0, 0), Option("int8", 8, 0.01, 0.1))
    broken = (Option("none", 16, 0, 0), Option("int8", 8, 0.01, math.inf))
    groups = (Group("c", "a", options), Group("c", "b", broken), Group("c", "d", options))
    assert choose(groups, 32, 0.001) == {("c", "a"): "int8", ("c", "b"): "none", ("c", "d"): "int8"}
