"""The figure of an advice and the curve that decides: every value in its place, names legible."""

from __future__ import annotations

import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from quantolab.recipes import Recipe
from quantolab.report.advised import (
    Advice,
    AdviceCurve,
    AdviceReport,
    CurvePoint,
    LayerAdvice,
    plot_curve,
    plot_layers,
)
from quantolab.report.lettering import png
from quantolab.weights import WORDS, weights_of

FLUX = [
    "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
    "context_embedder", "x_embedder",
    *(f"transformer_blocks.{b}.{leaf}" for b in range(2)
      for leaf in ("norm1.linear", "attn.to_q", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")),
    *(f"single_transformer_blocks.{b}.{leaf}" for b in range(3)
      for leaf in ("norm.linear", "proj_mlp", "proj_out", "attn.to_q")),
    "norm_out.linear", "proj_out",
]  # fmt: skip


def choices(paths, component="transformer"):
    return tuple(
        LayerAdvice(component, path, WORDS[i % 5], 1000 + i, 0.001 * i, 0.01 * (1 + i % 7), "why")
        for i, path in enumerate(paths)
    )


def bars(ax):
    """Return (place, height, word) of every bar from left to right."""
    found = [
        (round(bar.get_x() + bar.get_width() / 2), bar.get_height(), group.get_label())
        for group in ax.containers
        for bar in group
    ]
    return sorted(found)


@pytest.mark.parametrize("dark", [False, True])
def test_layers_stand_in_order_with_their_word_as_colour(dark):
    chosen = choices(FLUX)
    ax = plot_layers(chosen, floor=0.02, title="demo: 4 MB", dark=dark)
    assert bars(ax) == [(i, c.sensitivity, c.word) for i, c in enumerate(chosen)]
    for group in ax.containers:
        row = weights_of(group.get_label())
        wanted = row.colour_on_dark if dark else row.colour
        assert {to_hex(bar.get_facecolor()) for bar in group} == {wanted.lower()}
    assert [0.02, 0.02] in [list(line.get_ydata()) for line in ax.lines]  # rounding
    assert ax.get_title("left") == "demo: 4 MB"
    said = {text.get_text().replace("\n", "") for text in ax.texts}
    assert {"rounding", "transformer_blocks.1", "single_transformer_blocks.2"} <= said
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks[FLUX.index("proj_out")] == "proj_out"
    assert ticks[FLUX.index("transformer_blocks.1.attn.to_q")] == "attn.to_q"


@pytest.mark.parametrize("count", [1, 2, 26, 72, 300])
def test_nothing_is_cut_off_and_no_names_lie_over_each_other(count):
    blocks = ("transformer_blocks", "single_transformer_blocks", "encoder.block")
    leaves = ("norm.linear", "attn.to_q", "attn.to_out.0", "ff.net.0.proj", "a_quite_long_name.w")
    paths = [f"{blocks[i * 3 // count]}.{i // 5}.{leaves[i % 5]}" for i in range(count)]
    ax = plot_layers(choices(paths), floor=0.02, title="transformer of demo: 4.20 MB of 4.20 MB")
    figure = ax.get_figure(root=True)
    assert png(figure)[:4] == b"\x89PNG"
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [t for t in (*ax.get_xticklabels(), *ax.texts, ax.title) if t.get_text()]
    boxes = [label.get_window_extent(renderer) for label in labels]
    for label, box in zip(labels, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, label.get_text()
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, label.get_text()
    for (one, a), (other, b) in itertools.combinations(zip(labels, boxes, strict=True), 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, up) < 1.5, (one.get_text(), other.get_text())


def test_layers_that_do_no_harm_or_all_are_drawn_too():
    some = [
        LayerAdvice("transformer", "a.q", "int8", 10, 0.0, 0.0, "why"),
        LayerAdvice("transformer", "a.k", "none", 10, 0.0, math.inf, "why"),
        LayerAdvice("transformer", "a.v", "int4", 10, 0.01, 0.1, "why"),
    ]
    heights = [height for _, height, _ in bars(plot_layers(some))]
    assert heights[1] == heights[2] == 0.1 and 0 < heights[0] < 0.1
    assert plot_layers([]).get_ylabel()


def test_components_are_told_apart():
    both = choices(["a.0.q", "a.0.k"]) + choices(["a.0.q", "a.0.k"], "text_encoder_2")
    said = {text.get_text().replace("\n", "") for text in plot_layers(both).texts}
    assert {"transformer.a.0", "text_encoder_2.a.0"} <= said


# --- the curve -------------------------------------------------------------------------------


CURVE = AdviceCurve(
    "demo · 10 steps",
    (CurvePoint(Recipe("int8"), 5_830_000, 47.6), CurvePoint(Recipe("int4"), 3_100_000, 28.0)),
    (
        CurvePoint(Recipe("int4", ("x",), name="b"), 4_900_000, 36.0, 5_000_000),
        CurvePoint(Recipe("int2", ("x",), name="a"), 2_400_000, 18.5, 2_500_000),
    ),
)


@pytest.mark.parametrize("dark", [False, True])
def test_the_curve_shows_each_recipe_where_it_is(dark):
    ax = plot_curve(CURVE, dark=dark)
    line, *points = ax.lines
    assert line.get_xydata().tolist() == [[2.4, 18.5], [4.9, 36.0]]  # from few bytes to many
    assert [p.get_xydata().tolist() for p in points] == [[[5.83, 47.6]], [[3.1, 28.0]]]
    assert [text.get_text() for text in ax.texts] == ["int8", "int4"]
    assert ax.get_xlabel() == "bytes of the weights (MB)"
    assert ax.get_title("left") == "demo · 10 steps"
    assert to_hex(ax.get_facecolor()) == ("#212121" if dark else "#ffffff")
    assert CURVE.table.psnr_db.tolist() == [47.6, 28.0, 36.0, 18.5]


def test_equal_pictures_are_named_since_they_have_no_place():
    point = CurvePoint(Recipe("int8", ("x",), name="nearly all kept"), 9_000_000, math.inf)
    ax = plot_curve(AdviceCurve("demo", CURVE.plain, (*CURVE.advised, point)))
    assert len(ax.lines[0].get_xydata()) == 2
    assert ax.get_title("left") == "demo\nequal pictures: nearly all kept"
    assert plot_curve(AdviceCurve("demo", (), ())).get_xlabel()  # nothing could be made


def test_a_report_in_a_notebook_is_escaped():
    advice = Advice(
        Recipe("int4", name="x"), "<model>", ("transformer",), 100, 90, 0.01, 0.02, 0.001, 8, 0.9,
        choices(["a.0.<q>", "a.0.k"]), (("int4", 90, 0.02),),
    )  # fmt: skip
    shown = AdviceReport(advice)._repr_html_()
    assert "&lt;model&gt;" in shown and "<model>" not in shown and "<q>" not in shown
    assert shown.count("<img") == 1
