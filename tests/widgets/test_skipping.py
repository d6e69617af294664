"""The skip picker and its panel: real layers, live costs, near misses; no browser."""

import pytest

import quantolab as ql
from quantolab.errors import ArgumentError
from quantolab.recipes import Term
from quantolab.units import format_bytes
from quantolab.widgets import skip_explorer
from quantolab.widgets.skip_picker import SkipPicker, skip_cost
from quantolab.widgets.words_field import WordsField


@pytest.fixture(scope="module")
def picker(flux_folder):
    picker = SkipPicker(flux_folder)
    assert picker.wait(300) and picker.loaded
    return picker


@pytest.fixture(autouse=True)
def _empty(picker):
    picker.value, picker.search.value = (), ""


def press_enter(text):
    """Send what a browser sends for Enter in a text field."""
    text._handle_custom_msg({"event": "submit"}, [])


def test_the_list_is_the_models_own(picker, flux_folder):
    report = ql.skip_report(flux_folder)
    assert [value for _, value in picker.choices.options] == list(report.path)
    picker.search.value = "NORM1.linear"
    assert [value for _, value in picker.choices.options] == ["transformer_blocks.0.norm1.linear"]
    picker.search.value, picker.view.value = "attn", "the same layer of every block"
    assert "transformer_blocks.*.attn.to_q" in [value for _, value in picker.choices.options]


def test_patterns_are_added_priced_and_taken_away(picker, flux_folder):
    seen = []
    picker.observe(lambda change: seen.append(change["new"]), "value")
    picker.search.value = "proj_out"
    assert picker.preview.value.count("hits 2 Linear layers; keeping them adds") == 1
    picker.add.click()
    picker.search.value = "*.attn.to_q"
    press_enter(picker.search)
    picker.choices.value = ("x_embedder",)
    picker.add_chosen.click()
    assert picker.value == seen[-1] == ("proj_out", "*.attn.to_q", "x_embedder")
    report = ql.skip_report(flux_folder, picker.value)
    assert picker.report.equals(report)
    cost = skip_cost(ql.skip_report(flux_folder), picker.value)
    assert cost.layers == report.skipped.sum()
    assert cost.diffusers_layers == report.diffusers_skips.sum()
    assert cost.added_bytes == {w: t["added"] for w, t in report.attrs["totals"].items()}
    assert f"{cost.layers} of {len(report)}" in picker.costs.value
    first, *others = picker.chips.children
    first.click()
    assert picker.value == ("*.attn.to_q", "x_embedder")
    assert list(picker.chips.children) == others


def test_a_near_miss_is_shown_and_corrected(picker):
    picker.search.value = "proj_ot"
    assert "hits no layer" in picker.preview.value
    picker.add.click()
    assert picker.value == ()
    assert "did you mean &#x27;proj_out&#x27;" in picker.error.value
    near = next(b for b in picker.suggestions.children if b.description == "proj_out")
    near.click()
    picker.add.click()
    assert picker.value == ("proj_out",)
    assert picker.error.value == ""


def test_patterns_outlive_a_change_of_model(picker, pipeline_folder, flux_folder):
    other = SkipPicker(flux_folder)
    other.value = ("x_embedder",)
    other.set_model(pipeline_folder, "text_encoder_2")
    assert other.wait(60) and other.loaded
    assert other.value == ("x_embedder",)
    assert isinstance(other.problem, ArgumentError)
    assert "of text_encoder_2" in other.error.value
    with pytest.raises(ArgumentError, match="'x_embedder' matches none"):
        other.report  # noqa: B018
    other.set_model("no-such-folder")
    assert other.wait(60) and not other.loaded
    assert "is no folder here" in other.error.value


# --- a word by component and by layer ---------------------------------------------------------

PARTS = ("transformer", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def looked(pipeline_folder):
    field = WordsField()
    field.set_model(pipeline_folder, PARTS, ("transformer",), "bfloat16")
    field.unfold()
    assert field.wait(300) and field.report is None  # nothing is said yet
    return field


@pytest.fixture
def words(looked):
    looked.show(None)
    assert looked.value == ""
    looked.pattern.value, looked.error.value = "", ""
    return looked


def test_words_and_terms_make_the_recipe_that_the_library_reads(words, pipeline_folder):
    words.parts["transformer"].value = "int8"
    words.parts["text_encoder_2"].value = "int4"
    assert words.value == "transformer=int8 text_encoder_2=int4"
    words.pattern.value, words.word.value = "*.attn.*", "float8"
    press_enter(words.pattern)
    words.pattern.value, words.word.value = "proj_out", "none"
    words.add.click()
    recipe = ql.Recipe.parse(words.value)
    assert recipe == words.recipe
    assert recipe == ql.Recipe(
        {"transformer": "int8", "text_encoder_2": "int4"},
        ("proj_out",),
        layers={"*.attn.*": "float8"},
    )
    report = ql.skip_report(pipeline_folder, recipe=recipe)
    for column in ("component", "path", "word", "term", "bytes"):
        assert sorted(words.report[column]) == sorted(report[column])
    assert f"{format_bytes(report.attrs['bytes'])}<" in words.preview.value  # the sum
    for term in recipe.terms:
        mine = report[report.term == str(term)]
        assert f"{term}</code>" in words.preview.value
        assert f">{format_bytes(mine.bytes.sum())}<" in words.preview.value
    first, *_ = words.chips.children
    assert first.description == "*.attn.*=float8  ✕"
    first.click()
    assert words.terms == (Term("proj_out", "none"),)


def test_what_a_pattern_would_do_is_said_while_it_is_typed(words, pipeline_folder):
    words.parts["transformer"].value = "int8"
    report = ql.skip_report(pipeline_folder)
    words.pattern.value, words.word.value = "transformer.*.attn.to_q", "int2"
    mine = report[report.path.str.endswith("attn.to_q")]
    said = f"hits {len(mine)} Linear layers: {format_bytes(mine.bytes_int2.sum())} in int2"
    assert said in words.hint.value
    words.pattern.value = "proj_ot"
    assert "did you mean &#x27;proj_out&#x27;" in words.hint.value
    words.add.click()
    assert words.terms == () and "did you mean" in words.error.value


def test_a_recipe_is_shown_and_what_takes_no_effect_is_said(words):
    recipe = ql.Recipe("int8", layers={"text_encoder_2": "int4", "proj_out": "none"})
    words.show(recipe)
    assert words.parts["transformer"].value == "int8"
    assert words.parts["text_encoder"].value == "as it is"
    assert ql.Recipe.parse(words.value).terms[:2] == (
        Term("transformer", "int8"), Term("text_encoder_2", "int4"),
    )  # fmt: skip
    words.parts["transformer"].value = "as it is"  # whose layer the term was about
    assert "proj_out" in words.preview.value and "matches none" in words.preview.value
    with pytest.raises(ArgumentError, match="matches none"):
        words.recipe  # noqa: B018
    words.show(None)
    words.terms = (Term("proj_out", "int4"),)  # of the denoiser, all else as it is
    assert set(words.report.word) == {"none", "int4"}


# --- what advice is worth ---------------------------------------------------------------------


@pytest.mark.long
def test_the_curve_of_advice_is_drawn_for_the_budgets(shallow_pipeline):
    panel = skip_explorer(shallow_pipeline)
    assert panel.wait(300)
    panel.advise_button.click()
    assert "no budget is named" in panel.error.value
    rows = ql.plan(shallow_pipeline, ["int4", "int8"]).query("component == 'transformer'")
    sizes = dict(zip(rows.recipe, rows.weight_bytes, strict=True))
    budgets = [int(sizes["int4"] * 1.1), int(sizes["int8"] * 1.1)]
    panel.budgets.value, panel.steps.value = ", ".join(map(str, budgets)), "1"
    assert "forwards" in panel.cost.value  # said before anything starts
    assert f'"{budgets[0]}", "{budgets[1]}"' in panel.call.partition("ql.plot_advice(")[2]
    panel.advise()
    panel.cancel_button.click()
    assert panel.wait(60) and panel.curve is None and "Cancelled" in panel.status.value
    del budgets[1:]  # each takes as long as the other
    panel.budgets.value = str(budgets[0])
    panel.advise(wait=True)
    assert panel.error.value == ""
    assert [point.budget_bytes for point in panel.curve.advised] == budgets
    assert all(p.weight_bytes <= p.budget_bytes for p in panel.curve.advised)
    assert len(panel.curve.plain) == 4
    assert panel.plot.value.count("<img") == 2  # for light and for dark pages
    assert panel.plot.value in panel.static_html()
