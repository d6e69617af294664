"""The compile panel: rows arrive one by one, and say whether compiling pays; no browser."""

import math

import pandas
import pytest
from compiled_rows import ROW

from quantolab.errors import ArgumentError
from quantolab.experiments.compiling import report_of
from quantolab.report import compiled
from quantolab.report.payback import draw_payback, payback, plot_payback
from quantolab.widgets.compiling import compile_explorer

SLOWER = {**ROW, "compiled_seconds": 3.0, "compiled_samples": (2.85, 3.0, 3.15) * 2,
          "break_even_images": math.inf}  # fmt: skip
UNCLEAR = {**ROW, "compiled_seconds": 1.95, "compiled_samples": (1.8, 1.95, 2.2) * 2,
           "break_even_images": 600.0}  # fmt: skip
FAILED = {"recipe": "int2", "way": "default", "status": "failed", "reason": "no <graph>"}


def test_when_compiling_pays_in_words():
    assert compiled.cells(ROW)[-2:] == ("2.00x faster (2.00–2.00)", "after 30 pictures (60.0 s)")
    assert compiled.cells(SLOWER)[-2:] == ("1.50x slower (1.50–1.50)", "never: it isn't faster")
    said, pays = compiled.cells(UNCLEAR)[-2:]
    assert said.startswith("not decided: about ")
    assert pays == "not shown to"
    spread = {**ROW, "compiled_samples": (0.9, 1.0, 1.1) * 2}
    assert compiled.cells(spread)[-1] == "after 29 to 32 pictures"
    few = {**ROW, "eager_samples": (2.0,), "compiled_samples": (1.0,), "repeats": 1}
    assert compiled.cells(few)[-2:] == (
        "2.00x as fast",
        "not shown to",
    )  # one picture shows nothing
    assert payback(few).break_even is None and not compiled.pays(few)
    assert "Too few repeats" in compiled.notes([few])[-1]
    once_slower = {**SLOWER, "compiled_samples": (3.0,), "eager_samples": (2.0,), "repeats": 1}
    assert compiled.cells(once_slower)[-1] == "not shown to"
    assert payback(once_slower).says.startswith("not shown to be paid back")
    assert [row["recipe"] for row in (ROW, SLOWER, UNCLEAR, FAILED) if compiled.pays(row)] == [
        "int8"
    ]
    assert compiled.notes([FAILED]) == ["int2, default (failed): no <graph>"]


def test_headings_are_the_recipes_own_names():
    """A short name heads rows, reasons and plots; what it stands for is said once."""
    text, short = "int4 *.attn.*=int8", "attention in int8"
    named = {**ROW, "recipe": text, "name": short}
    assert compiled.cells(named)[:2] == (short, "fullgraph")
    assert compiled.name(named) == f"{short}, fullgraph"
    assert draw_payback(payback(named)).get_title("left").startswith(f"{short}, fullgraph")
    assert compiled.notes([ROW, named, named])[0] == f"{short}: {text}"
    failed = {**FAILED, "recipe": text, "name": short}
    assert compiled.notes([failed])[1] == f"{short}, default (failed): no <graph>"
    for absent in (None, math.nan):  # as a frame of several rows has it
        assert compiled.name({**ROW, "name": absent}) == "int8, fullgraph"


def test_the_lines_cross_where_the_report_says():
    values = payback(ROW)
    assert values.eager(30) == values.compiled(30) == 60.0
    assert values.pictures >= 30
    axes = draw_payback(values)
    crossing = next(line for line in axes.lines if line.get_marker() == "o")
    assert crossing.get_xydata().tolist() == [[30.0, 60.0]]
    assert payback(SLOWER).break_even is None
    assert payback(UNCLEAR).break_even is None
    assert not axes.patches  # an interval without width has no band
    assert "never paid back" in draw_payback(payback(SLOWER), dark=True).get_title("left")


def test_a_report_shows_itself_and_its_rows_are_drawn():
    report = report_of([ROW, FAILED])
    assert list(report.columns) == list(report_of([]).columns)  # all of them, as ever
    for shown in (repr(report), report._repr_html_()):
        assert "after 30 pictures (60.0 s)" in shown
        assert "2.00x faster" in shown
        assert "conditions" not in shown  # no name of a column
    assert "no &lt;graph&gt;" in report._repr_html_()
    assert type(report[report.status == "ok"]) is pandas.DataFrame
    drawn = plot_payback(report.iloc[0])
    assert drawn.get_title("left") == draw_payback(payback(ROW)).get_title("left")
    with pytest.raises(ArgumentError, match="is ok; this is failed"):
        plot_payback(report.iloc[1])


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_the_break_even_is_a_range_wherever_it_is_said(spread):
    """As in a report: medians, and samples whose ratios differ from pair to pair."""
    row = {**ROW, "compiled_samples": (1 - spread, 1.0, 1 + spread) * 4,
           "eager_samples": (1.9, 2.0, 2.1) * 4}  # fmt: skip
    low, high = compiled.payback_range(row)
    assert low < high and low <= 30 <= high
    said = f"{low} to {high} pictures"
    assert compiled.cells(row)[-1] == f"after {said}"
    values = payback(row)
    assert values.says == f"paid back after {said}"
    axes = draw_payback(values)
    assert said in axes.get_title("left")
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (low, high)
    assert axes.get_xlim()[1] > high
    panel = compile_explorer("demo")
    panel.rows = (row,)
    assert said in panel._advice()


def small_panel(folder):
    panel = compile_explorer(folder)
    for word, box in (*panel.weights.items(), *panel.ways.items()):
        box.value = word in ("int4", "fullgraph")
    panel.steps.value, panel.prompt.value, panel.repeats.value = "2", "a red cat", 3
    panel.recipe_field.device.value = "cpu"
    return panel


@pytest.fixture(scope="module")
def ran(shallow_pipeline):
    """A panel that has compiled once, since that takes long; and how many rows it showed when."""
    panel, arrived = small_panel(shallow_pipeline), []
    panel.table.observe(lambda _: arrived.append(len(panel.rows)), "value")
    panel.run(wait=True)
    return panel, arrived


@pytest.mark.sweep
def test_rows_arrive_as_they_are_finished(ran):
    panel, arrived = ran
    assert panel.error.value == ""
    assert sorted(set(arrived)) == [0, 1]
    report = panel.report
    assert list(report["way"]) == ["fullgraph"]
    assert list(report["status"]) == ["ok"], list(report["reason"])
    assert len(panel.shown.options) == 1
    assert panel.plot.value.count("<img") == 2  # for light and for dark pages
    assert "Too few repeats" in panel.static_html()


@pytest.mark.sweep
def test_the_report_of_the_hardest_dtype(ran):
    """int4 with bfloat16 is the one that plain Quanto can't compile."""
    report = ran[0].report
    assert list(zip(report.recipe, report.way, strict=True)) == [("int4", "fullgraph")]
    assert report.graph_breaks[0] == 0
    assert report.graphs[0] >= 1
    assert report.compile_seconds[0] > 0
    assert len(report.eager_samples[0]) == len(report.compiled_samples[0]) == 3
    assert report.difference[0] < 0.02


@pytest.mark.sweep
def test_half_the_width_is_compiled_once_more(shallow_pipeline):
    panel = small_panel(shallow_pipeline)
    panel.size.value = "64x32"  # twice as wide as the least
    panel.run(wait=True)
    assert panel.error.value == ""
    assert panel.report.recompilations[0] == 1


def test_cancel_ends_it_and_the_panel_goes_on(pipeline_folder):
    panel = small_panel(pipeline_folder)
    panel.run()
    assert panel.run_button.disabled and not panel.cancel_button.disabled
    panel.cancel()
    assert panel.wait(10)
    assert "Cancelled" in panel.status.value
    assert panel.report is None
    panel.steps.value = "many"
    panel.run(wait=True)
    assert "steps must be a whole number or None, not &#x27;many&#x27;" in panel.error.value
