"""The words and places of both figures; of the drawing, what can be asked without pixels' luck."""

import dataclasses
import io
import itertools
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from quantolab.errors import ArgumentError
from quantolab.recipes import Recipe
from quantolab.report.figures import grid_content, image_grid, plot_tradeoff, tradeoff
from quantolab.report.grid import (
    GridColumn,
    GridContent,
    GridRow,
    _Layout,
    drawn_grid,
    grid_pages,
    picture_scale,
    shown_pixels,
)
from quantolab.report.lettering import png, text_width, wrapped
from quantolab.report.tables import results_table
from quantolab.report.tradeoff import (
    QualityAxis,
    TradeoffPoint,
    label_lines,
    marker_areas,
    quality_axis,
)
from quantolab.units import format_interval

LONG = Recipe("int4", ("proj_out", "transformer_blocks.0.*"), ("transformer", "text_encoder_2"))
ORDERED = ["none", "float8", "int8", "int8 compiled", "int4", "int2"]


def words(figure):
    """Return every text of a figure, in the order it was written."""
    return [text.get_text() for text in figure.texts]


# --- the image grid: words ----------------------------------------------------------------------


def test_columns_are_in_order_of_precision(make):
    mixed = make(["int2", "int8", Recipe("int8", ("a",)), "none"], compiled=("int8", "none"))
    assert [column.label for column in grid_content(mixed).columns] == [
        "none", "none compiled", "int8", "int8 compiled", "int8 a=none",
        "int8 a=none compiled", "int2",
    ]  # fmt: skip


def test_headings(broken):
    columns = grid_content(broken).columns
    assert columns[0] == GridColumn(
        "none", "none", "", ("6.62 MB", "181 ms (179–183)", "unquantized reference")
    )
    row = results_table(broken).iloc[3]
    ends = [row[f"latency_{end}_seconds"] for end in ("low", "high")]
    assert columns[3] == GridColumn(
        "int4", "int4", "", (
            "1.99 MB · 0.30x",
            format_interval(row["latency_seconds"], *ends),
            f"{1 / row['speedup']:.2f}x slower "
            f"({1 / row['speedup_high']:.2f}–{1 / row['speedup_low']:.2f})",
            f"{row['psnr_db']:.1f} dB",
            f"SSIM {row['ssim']:.3f}",
        )
    )  # fmt: skip
    assert columns[4] == GridColumn(
        "int2", "int2", "", ("failed",), "its process was killed for using 16.2 GB"
    )


def test_rows_are_prompts_by_seeds(comparison):
    first, second = comparison.workload.prompts
    assert grid_content(comparison).rows == (
        GridRow(first, 0, True), GridRow(first, 1, False),
        GridRow(second, 0, True), GridRow(second, 1, False),
    )  # fmt: skip
    assert grid_content(comparison, prompts=second).rows == (
        GridRow(second, 0, True), GridRow(second, 1, False),
    )  # fmt: skip


def test_captions_are_each_picture_s_own(comparison):
    captions = grid_content(comparison).captions
    int8 = next(trial for trial in comparison.trials if trial.label == "int8")
    assert {key: text for key, text in captions.items() if key[0] == "int8"} == {
        ("int8", picture.prompt, picture.seed): f"{picture.psnr_db:.1f} dB"
        for picture in int8.quality
    }
    assert not [key for key in captions if key[0] == "none"]


def test_the_footer_says_how_it_was_made(comparison):
    assert grid_content(comparison).footer == (
        "model demo · 20 steps · 128x128 pixels · float32 · AMD EPYC 9R14 (cpu) · "
        "torch 2.13.0, diffusers 0.42.1, quanto 0.2.7 · bytes: weights in memory · "
        "seconds: one picture, median of 7 · in brackets: 95 % intervals · "
        "PSNR and SSIM: against the reference's picture of the same prompt and seed"
    )


def test_without_a_reference(make):
    lonely = dataclasses.replace(make(["int8"], compiled=()).trials[0], quality=())
    found = dataclasses.replace(make(["int8"], compiled=()), trials=(lonely,))
    assert grid_content(found).columns[0].facts == ("3.42 MB", "186 ms (184–188)", "no reference")
    assert "PSNR" not in grid_content(found).footer


def undecided(make):
    """Return a comparison whose rounds don't tell int8 from the reference."""
    comparison = make(["none", "int8", "int4"], compiled=())
    none, int8, *rest = comparison.trials
    samples = [s * (0.9, 1.15)[n % 2] for n, s in enumerate(none.timing.samples)]
    timing = dataclasses.replace(int8.timing, samples=tuple(samples), other_load=0.7)
    trials = (none, dataclasses.replace(int8, timing=timing), *rest)
    return dataclasses.replace(comparison, trials=trials)


def test_the_grid_carries_the_doubts_of_the_table(make):
    content = grid_content(undecided(make))
    assert [column.doubtful for column in content.columns] == [False, True, False]
    assert content.columns[1].facts[2] == "not decided"
    assert "Not decided: it would take" in content.footer
    assert "Other work took up to 70% of the processors' time" in content.footer


def test_the_plot_shows_no_seconds_that_the_table_has_no_verdict_on(make):
    values = tradeoff(results_table(undecided(make)))
    assert [(p.label, p.doubtful) for p in values.points] == [("int8", True), ("int4", False)]
    assert [p.shown_seconds is None for p in values.points] == [True, False]
    ax = plot_tradeoff(results_table(undecided(make)))
    words = " ".join(" ".join(t.get_text() for t in ax.texts).split())
    assert "Crosses: no verdict on speed, so no seconds (int8)." in words
    # A small circle would be read as few seconds: what isn't decided has none.
    cross, circle = (
        next(c for c in ax.collections if tuple(c.get_offsets()[0]) == at)
        for at in ((p.weight_bytes / values.unit[0], p.quality) for p in values.points)
    )
    assert len(cross.get_paths()[0].vertices) == 4 < len(circle.get_paths()[0].vertices)


def test_a_prompt_that_was_not_run(comparison):
    with pytest.raises(ArgumentError) as caught:
        image_grid(comparison, prompts="a red circle above a blue squares")
    assert str(caught.value) == (
        "prompt 'a red circle above a blue squares' is not known; allowed: "
        "a red circle above a blue square, two yellow stars on a green field; "
        "did you mean 'a red circle above a blue square'?"
    )


@pytest.mark.parametrize("changes", [{"trials": ()}, {}])
def test_nothing_to_show(comparison, changes):
    with pytest.raises(ArgumentError, match=r"^there is nothing to show"):
        image_grid(dataclasses.replace(comparison, **changes), prompts=None if changes else ())


# --- the image grid: drawing --------------------------------------------------------------------


def test_every_word_is_in_the_figure(comparison):
    figure = image_grid(comparison)
    content = grid_content(comparison)
    written = words(figure)
    for column in content.columns:
        assert column.name in written
        assert set(column.facts) <= set(written)
    assert written.count("seed 0") == written.count("seed 1") == 2
    assert " ".join(written).count("a red circle above a blue square") == 1
    assert all(written.count(text) >= 1 for text in content.captions.values())


def test_one_picture_a_cell_and_none_for_the_failed(broken):
    figure = image_grid(broken)
    assert isinstance(figure, Figure)
    assert [ax.get_label() for ax in figure.axes] == [
        str((label, prompt, seed))
        for label in ("none", "float8", "int8", "int4")
        for prompt, seed in broken.workload.pairs
    ]
    assert " ".join(words(figure)).count("its process was killed for using 16.2 GB") == 1


def test_a_missing_picture_is_said(comparison):
    key = ("int4", *comparison.workload.pairs[0])
    images = {k: v for k, v in comparison.images.items() if k != key}
    figure = image_grid(dataclasses.replace(comparison, images=images))
    assert words(figure).count("no picture") == 1
    assert len(figure.axes) == 23


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipes": ["none", "int4"], "compiled": (), "seeds": (0,), "prompts": ("x",)},
        {"recipes": ["none", LONG, "int2"], "compiled": ("int4",), "prompts": ("so " * 150, "$x$")},
        {"recipes": ["none", "int8"], "size": (160, 64), "prompts": ("many words " * 30,)},
        pytest.param(
            {"failed": {"int2": ("failed", "out/of/memory/" * 30), "none": ("failed", "gone")}},
            marks=pytest.mark.sweep,
        ),
    ],
)
def test_no_words_collide_or_leave_the_page(make, options):
    figure = image_grid(make(**options))
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text
        for ax in figure.axes:
            assert not box.padded(-1).overlaps(ax.bbox), (text, ax.get_label())
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        # Lines of one block may touch; letters that share ground may not.
        assert not a.padded(-2).overlaps(b.padded(-2)), (one, other)


@pytest.mark.parametrize("size", [(128, 128), (96, 64), (384, 384), (7, 5)])
def test_small_pictures_are_enlarged_pixel_by_pixel(make, size):
    found = make(["none", "int4"], compiled=(), seeds=(0,), size=size)
    figure = image_grid(found)
    drawn = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))
    scale = picture_scale(size)
    times = scale.width // size[0]
    assert (scale.width, scale.height) == (size[0] * times, size[1] * times)
    for ax in figure.axes:
        left, top = round(ax.bbox.x0), drawn.shape[0] - round(ax.bbox.y1)
        shown = drawn[top : top + scale.height, left : left + scale.width]
        picture = next(v for k, v in found.images.items() if str(k) == ax.get_label())
        expected = np.asarray(picture).repeat(times, 0).repeat(times, 1)
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (384, 384)), ((128, 128), (384, 384)), ((512, 512), (512, 512)),
        ((768, 768), (384, 384)), ((1024, 1024), (512, 512)), ((2048, 2048), (512, 512)),
        ((1024, 512), (512, 256)), ((512, 1024), (512, 1024)),
    ],
)  # fmt: skip
def test_big_pictures_are_reduced_by_whole_numbers(size, shown):
    scale = picture_scale(size)
    assert (scale.width, scale.height) == shown
    assert 140 <= scale.dpi <= 320
    assert shown_pixels(Image.new("RGB", size), scale).shape == (*shown[::-1], 3)


def test_the_page_is_white_in_a_dark_notebook(broken):
    dark = {"figure.facecolor": "black", "savefig.facecolor": "auto", "text.color": "white"}
    with matplotlib.rc_context(dark):
        figure = image_grid(broken)
        corner = Image.open(io.BytesIO(png(figure))).convert("RGB").getpixel((0, 0))
    assert corner == (255, 255, 255)
    assert {text.get_color() for text in figure.texts} == {"#1a1a1a", "#666666", "#a3260f"}


def test_a_notebook_shows_both_figures(broken):
    assert image_grid(broken)._repr_png_().startswith(b"\x89PNG")
    assert plot_tradeoff(results_table(broken))._repr_png_().startswith(b"\x89PNG")


# --- memory against quality: values -------------------------------------------------------------


def test_points(broken):
    table = results_table(broken)
    found = tradeoff(table)
    rows = {row["recipe"]: row for row in table.to_dict("records")}
    assert found.reference == TradeoffPoint(
        "none", "none", False, 6_620_160, None, rows["none"]["latency_seconds"]
    )
    assert found.points == tuple(
        TradeoffPoint(
            name, name, False, int(rows[name]["weight_bytes"]), rows[name]["psnr_db"],
            rows[name]["latency_seconds"],
        )
        for name in ("float8", "int8", "int4")
    )  # fmt: skip
    assert found.left_out == ("int2 (failed)",)
    assert (found.logarithmic, found.unit) == (False, (10**6, "MB"))


def test_a_table_from_a_file_gives_the_same_points(make):
    failed = {"int2": ("failed", "killed")}
    table = results_table(make(failed=failed))
    back = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for quality in ("psnr_db", "ssim"):
        ours, theirs = (rounded(tradeoff(t, quality=quality)) for t in (back, table))
        assert ours == theirs
        assert len(theirs["points"]) > 1


def rounded(found):
    """Return what is drawn but for the last digits, which pandas 2 doesn't read as written."""

    def of_point(point):
        values = vars(point).items()
        return {n: round(v, 12) if isinstance(v, float) else v for n, v in values}

    values = {**vars(found), "reference": of_point(found.reference)}
    return {**values, "points": [of_point(point) for point in found.points]}


def test_what_was_not_measured_is_left_out_by_name(comparison):
    table = results_table(comparison)
    table.loc[1, "weight_bytes"] = pd.NA
    table.loc[2, "psnr_db"] = math.nan
    found = tradeoff(table)
    assert found.left_out == ("float8 (no bytes measured)", "int8 (no quality measured)")
    assert [point.label for point in found.points] == ["int8 compiled", "int4", "int2"]


def test_where_nothing_was_judged_seconds_stand_in(make):
    unjudged = make(["int8", "int4"], compiled=())
    trials = tuple(dataclasses.replace(trial, quality=()) for trial in unjudged.trials)
    table = results_table(dataclasses.replace(unjudged, trials=trials))
    found = tradeoff(table)
    assert found.quality == "latency_seconds" and found.left_out == ()
    assert [p.quality for p in found.points] == list(table.latency_seconds)
    assert [p.low for p in found.points] == list(table.latency_low_seconds)
    ax = plot_tradeoff(table)
    assert ax.get_ylabel() == "seconds a picture" and ax.get_ylim()[0] == 0
    texts = " ".join(text.get_text().replace("\n", " ") for text in ax.texts)
    assert "Down and to the left is better" in texts and "Nothing was judged" in texts
    judged = make(["none", "int8"], compiled=())
    assert tradeoff(results_table(judged)).quality == "psnr_db"


def test_bytes_of_different_magnitude_are_logarithmic(comparison):
    table = results_table(comparison)
    table.loc[0, "weight_bytes"] = 66_000_000
    assert tradeoff(table).logarithmic
    assert plot_tradeoff(table).get_xscale() == "log"


def test_the_vertical_axis():
    assert quality_axis([20.0, 30.0], span=6.0) == QualityAxis(18.4, 31.6, None)
    assert quality_axis([20.0], span=10.0) == QualityAxis(13.4, 26.6, None)
    assert quality_axis([20.0, 30.0, math.inf], span=6.0) == QualityAxis(18.4, 35.0, 33.0)
    assert quality_axis([], span=10.0) == QualityAxis(-6.6, 6.6, None)


def test_areas_are_in_proportion_to_seconds():
    points = tuple(
        TradeoffPoint("x", "int8", False, 1, 30.0, seconds) for seconds in (2.0, 1.0, 0.001, None)
    )
    assert marker_areas(points) == (260.0, 130.0, 30.0, 30.0)


def test_label_lines():
    assert label_lines("int8", 0.186) == ("int8 · 186 ms",)
    assert label_lines("int8", None) == ("int8",)
    assert label_lines("int8, keeping proj_out", 0.186) == ("int8, keeping proj_out", "186 ms")


@pytest.mark.parametrize("quality", ["psnr", "lpips"])
def test_an_unknown_quality(broken, quality):
    with pytest.raises(ArgumentError, match="allowed: psnr_db, ssim"):
        plot_tradeoff(results_table(broken), quality=quality)


# --- memory against quality: drawing ------------------------------------------------------------


def annotations(ax):
    """Return the texts that were written into the axes."""
    return [child for child in ax.get_children() if isinstance(child, Annotation)]


def test_axes_are_labelled_with_units(broken):
    ax = plot_tradeoff(results_table(broken))
    assert ax.get_xlabel() == "weights in memory (MB)"
    assert ax.get_ylabel() == "PSNR against the reference (dB)"
    assert ax.get_title(loc="left") == "demo · 20 steps · 128x128 · float32 · AMD EPYC 9R14"
    said = [text.get_text() for text in annotations(ax)]
    assert said[-1].endswith("Not drawn: int2 (failed)")
    assert said[:3] == [
        f"{p.label} · {p.seconds * 1000:.0f} ms" for p in tradeoff(results_table(broken)).points
    ]
    assert said[3].startswith("reference: none · ")


def test_points_are_where_the_table_says(broken):
    table = results_table(broken)
    ax = plot_tradeoff(table)
    drawn = [tuple(c.get_offsets()[0].tolist()) for c in ax.collections]
    rows = table[table["psnr_db"].notna()]
    assert drawn == list(zip(rows["weight_bytes"] / 1e6, rows["psnr_db"], strict=True))
    assert ax.lines[0].get_xdata() == [6.62016, 6.62016]


def test_identical_pictures_have_a_line_of_their_own(comparison):
    table = results_table(comparison)
    table.loc[1, "psnr_db"] = math.inf
    ax = plot_tradeoff(table)
    height = ax.collections[0].get_offsets()[0][1]
    assert (
        dict(zip(ax.get_yticks(), (t.get_text() for t in ax.get_yticklabels()), strict=True))[
            height
        ]
        == "identical"
    )
    assert height > table["psnr_db"].replace(math.inf, 0).max()


def test_it_is_a_guest(broken):
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    ax = plot_tradeoff(results_table(broken), right, alpha=0.5, marker="s")
    assert ax is right and not left.has_data() and ax.get_title(loc="left") == ""
    assert {c.get_alpha() for c in ax.collections} == {0.5}


@pytest.mark.parametrize("recipes", [["int8"], ["none"], ["none", "int8"]])
def test_few_recipes(make, recipes):
    failed = {"int8": ("failed", "killed")} if len(recipes) == 2 else None
    ax = plot_tradeoff(results_table(make(recipes, compiled=(), failed=failed)))
    ax.figure.draw_without_rendering()
    said = " ".join(annotations(ax)[-1].get_text().split())
    assert said.startswith("Area" if recipes == ["int8"] else "No recipe has a quality to draw.")


@pytest.mark.parametrize("quality", ["psnr_db", "ssim"])
@pytest.mark.parametrize("same", [False, True])
def test_labels_of_ten_recipes_do_not_overlap(make, quality, same):
    recipes = ["none", "float8", "int8", Recipe("int8", ("proj_out",)), "int4", LONG, "int2"]
    table = results_table(make(recipes, compiled=("none", "float8", "int8"), seeds=(0,)))
    assert len(table) == 11
    if same:
        table.loc[2:5, "weight_bytes"] = 3_400_000
        table.loc[2:5, quality] = table.loc[2, quality]
    ax = plot_tradeoff(table, quality=quality)
    ax.figure.draw_without_rendering()
    page = ax.figure.bbox
    boxes = {text.get_text(): text.get_window_extent() for text in annotations(ax)}
    boxes |= {t.get_text(): t.get_window_extent() for t in (ax.xaxis.label, ax.yaxis.label)}
    assert len(boxes) == 14  # ten points, reference, note, two axes
    for text, box in boxes.items():
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)


# --- letters ------------------------------------------------------------------------------------


def test_wrapped_lines_fit():
    text = "A prompt of many words, and/one/path/that_is_longer_than_any_line_could_be.safetensors"
    lines = wrapped(text, 1.2, 9)
    assert all(text_width(line, 9) <= 1.2 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    cut = wrapped(text, 1.2, 9, most=2)
    assert len(cut) == 2 and cut[1].endswith("…") and text_width(cut[1], 9) <= 1.2
    assert wrapped("", 1.2, 9) == ()
    assert wrapped("数" * 40, 0.5, 9, most=3)[-1].endswith("…")


def content_of(columns, rows):
    """Return the words of a grid of so many columns and rows."""
    return GridContent(
        columns=tuple(GridColumn(f"int8 {n}", "int8", str(n), ("ok",)) for n in range(columns)),
        rows=tuple(GridRow("a prompt", seed, first=seed == 0) for seed in range(rows)),
        captions={},
        footer="footer",
    )


@pytest.mark.parametrize("shape", [(5, 8), (4, 500), (500, 4), (1, 3000), (1, 1)])
@pytest.mark.parametrize("size", [(64, 64), (1024, 1024), (768, 1344)])
def test_pages_hold_every_picture_once_and_each_fits(shape, size):
    content, scale = content_of(*shape), picture_scale(size)
    pages = grid_pages(content, scale)
    seen = [(c.label, r.seed) for page in pages for c in page.columns for r in page.rows]
    assert sorted(seen) == sorted((c.label, r.seed) for c in content.columns for r in content.rows)
    for page in pages:
        layout = _Layout(page, scale)
        pixels = layout.width * scale.dpi, layout.height * scale.dpi
        assert max(pixels) < 65_536 and pixels[0] * pixels[1] < 90_000_000
        assert page.rows[0].first  # the prompt is said on each
    assert len(pages) == 1 or [page.footer for page in pages] == [
        f"page {n} of {len(pages)} · footer" for n in range(1, len(pages) + 1)
    ]
    assert (len(pages) == 1) == (shape in ((5, 8), (1, 1)))


def test_a_grid_too_large_is_refused_with_its_pages():
    with pytest.raises(ArgumentError, match=r"2000 pictures are too many .*page=1"):
        drawn_grid(content_of(4, 500), {}, (64, 64))
    for wrong in (0, 99, "1"):
        with pytest.raises(ArgumentError, match="page must be a whole number"):
            drawn_grid(content_of(4, 500), {}, (64, 64), wrong)
