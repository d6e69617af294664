"""The skip picker and its panel: real layers, live costs, near misses; no browser."""

import pytest

import quantolab as ql
from quantolab.errors import ArgumentError
from quantolab.widgets.skip_picker import SkipPicker, skip_cost


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
