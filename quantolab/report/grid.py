"""The image grid: a row a prompt and seed, a column a recipe, figures over each column."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .. import units
from ..arguments import public
from ..errors import ArgumentError, one_of, whole_number
from ..records import BORROWED, Comparison, Trial
from ..weights import place_of
from .error_maps import error_maps
from .lettering import POINTS, ShownFigure, lettering, wrapped
from .tables import (
    is_doubtful,
    plain_rows,
    quality_words,
    reference_row,
    results_table,
    speed_notes,
    speed_words,
    split_label,
)

VIEWS = ("pictures", "errors")
"""What a grid can show of each picture."""

# --- what the grid says -----------------------------------------------------------------------


@dataclass(frozen=True)
class GridColumn:
    """One recipe: its heading, and why it has no pictures if it has none."""

    label: str
    name: str
    """Weights dtype, and whether compiled: the line in bold."""
    rest: str
    """What else tells the recipe from others: skips and components."""
    facts: tuple[str, ...]
    """Bytes, seconds, what they show, quality: a line each."""
    reason: str | None = None
    doubtful: bool = False
    """Whether its seconds (the second line) show no difference to the reference's."""


@dataclass(frozen=True)
class GridRow:
    """One prompt and seed."""

    prompt: str
    seed: int
    first: bool
    """Whether the prompt is new, and so is written out."""


@dataclass(frozen=True)
class GridContent:
    """Every word of an image grid, before anything is drawn."""

    columns: tuple[GridColumn, ...]
    rows: tuple[GridRow, ...]
    captions: dict[tuple[str, str, int], str]
    """Under each picture, by (trial label, prompt, seed): its own PSNR."""
    footer: str


def grid_content(
    comparison: Comparison, *, prompts: Iterable[str] | str | None = None
) -> GridContent:
    """Return the words of the image grid, recipes in order of precision.

    The reference comes first and a compiled recipe right after its eager twin.

    Parameters
    ----------
    comparison : Comparison
        What to show.
    prompts : str or iterable of str, optional
        Which prompts to show, in this order; all of them by default.

    Raises
    ------
    ArgumentError
        If a prompt is no prompt of the comparison, or nothing is left to show.
    """
    rows = _rows(comparison, prompts)
    if not comparison.trials or not rows:
        raise ArgumentError("there is nothing to show: the comparison has no trial or no prompt")
    table = results_table(comparison)
    position = reference_row(table)
    records = plain_rows(table)
    reference = None if position is None else records[position]
    by_label = dict(zip((t.label for t in comparison.trials), records, strict=True))
    return GridContent(
        columns=(
            *borrowed_column(comparison),
            *(
                _column(by_label[trial.label], reference, comparison.judge)
                for trial in in_grid_order(comparison.trials)
            ),
        ),
        rows=rows,
        captions={
            (trial.label, picture.prompt, picture.seed): units.format_decibels(picture.psnr_db)
            for trial in comparison.trials
            if trial.label != comparison.judge
            for picture in trial.quality
        },
        footer=_footer(comparison, records, reference),
    )


def borrowed_column(comparison: Comparison) -> tuple[GridColumn, ...]:
    """Return the column of another run's pictures, where others are judged against those."""
    theirs = comparison.borrowed
    if theirs is None:
        return ()
    where = theirs.device if theirs.conditions is None else theirs.conditions.device_name
    facts = ("of another run", where, "unquantized reference")
    return (GridColumn(BORROWED, BORROWED, theirs.folder, facts),)


def in_grid_order(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return trials as columns of a grid: from the most precise words to the least.

    Recipes of one word stay in their order, and a compiled one stands beside its eager twin.
    """
    trials = tuple(trials)
    first = {trial.recipe: place for place, trial in reversed(list(enumerate(trials)))}

    def place(trial: Trial) -> tuple[list[Any], int, bool]:
        words = [place_of(word) for word in trial.recipe.words]
        return words, first[trial.recipe], trial.compiled

    return tuple(sorted(trials, key=place))


def _rows(comparison: Comparison, prompts: Iterable[str] | str | None) -> tuple[GridRow, ...]:
    known = comparison.workload.prompts
    if prompts is None:
        prompts = known
    prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    for prompt in prompts:
        one_of("prompt", prompt, known)
    return tuple(
        GridRow(prompt, seed, first=seed == comparison.workload.seeds[0])
        for prompt in dict.fromkeys(prompts)
        for seed in comparison.workload.seeds
    )


def _column(record: dict, reference: dict | None, judge: str | None) -> GridColumn:
    name, rest = split_label(record["recipe"], record["name"])
    if record["status"] != "ok":
        reason = record["reason"] or "no reason was recorded"
        return GridColumn(record["recipe"], name, rest, (record["status"],), reason)
    doubtful = is_doubtful(record, reference)
    return GridColumn(
        record["recipe"], name, rest, _facts(record, reference, judge), doubtful=doubtful
    )


def _facts(record: dict, reference: dict | None, judge: str | None) -> tuple[str, ...]:
    size = units.format_bytes(record["weight_bytes"])
    speed = units.format_interval(
        *(record[f"latency_{part}seconds"] for part in ("", "low_", "high_"))
    )
    if record is reference and record["psnr_db"] is None:
        return size, speed, "unquantized reference"
    if reference and reference["weight_bytes"] and record["weight_bytes"]:
        size += f" · {units.format_ratio(record['weight_bytes'] / reference['weight_bytes'])}"
    said = speed_words(record, short=True)
    if said is None and is_doubtful(record, reference):
        said = "no verdict on speed"
    lines = (size, speed, said) if said else (size, speed)
    if record["psnr_db"] is None:
        if record["recipe"] == judge:
            return *lines, "stands in for the reference"
        return *lines, "no reference" if judge is None else "not compared"
    similar = f"SSIM {units.format_similarity(record['ssim'])}"
    multiple = record.get("floor_multiple")
    if multiple is not None:
        similar = f"{units.format_multiple(multiple)} the floor · {similar}"
    return *lines, quality_words(record), similar


def _footer(comparison: Comparison, records: list[dict], reference: dict | None) -> str:
    work = comparison.workload
    where = next((t.conditions for t in comparison.trials if t.conditions is not None), None)
    parts = [
        f"model {work.model}",
        units.format_count(work.steps, "step"),
        "{}x{} pixels".format(*work.size),
        work.dtype,
    ]
    if where is None:
        parts.append(work.device)
    else:
        parts.append(f"{where.device_name} ({work.device})")
        parts.append(f"torch {where.torch}, diffusers {where.diffusers}, quanto {where.quanto}")
    parts.append("bytes: weights in memory")
    of = f", median of {work.repeats}" if work.repeats > 1 else ""
    parts.append(f"seconds: one picture{of}")
    if any(record["latency_low_seconds"] is not None for record in records):
        parts.append("in brackets: 95 % intervals")
    if comparison.judge is not None:
        parts.append("PSNR and SSIM: against the reference's picture of the same prompt and seed")
    if any(record.get("floor_multiple") is not None for record in records):
        parts.append("floor: the reference with the same sums in another order")
    parts += [note.rstrip(".") for note in speed_notes(records, reference)]
    return " · ".join(parts)


# --- where everything goes, in inches and pixels ----------------------------------------------

_MARGIN = 0.25
_GAP = 0.14  # between columns
_CAPTION = 0.21  # under each picture
_BETWEEN_PROMPTS = 0.1
_NAME, _REST, _FACT, _PROMPT, _SEED, _SMALL = 11.5, 8.0, 8.5, 9.0, 8.0, 7.5  # points
_LEADING = 1.32  # line to line, over the font size
_INK, _QUIET, _ALARM, _EMPTY = "#1a1a1a", "#666666", "#a3260f", "#f1f1f1"


@dataclass(frozen=True)
class PictureScale:
    """How pictures of one size are shown: enlarged or reduced by a whole number."""

    width: int
    height: int
    """Pixels a picture gets in the figure."""
    inches: float
    """Width of a picture on paper."""

    @property
    def dpi(self) -> float:
        """Pixels an inch at which the figure has just these pixels."""
        return self.width / self.inches


_CRISP = 192  # pixels an inch: small pictures are enlarged to about this
_PLENTY = 256  # big ones are reduced to about this, or a grid of 1024s would weigh 50 MB


def picture_scale(size: tuple[int, int]) -> PictureScale:
    """Return how to show pictures of a size (width, height in pixels) without blurring them.

    Examples
    --------
    >>> picture_scale((128, 128))
    PictureScale(width=384, height=384, inches=2.0)
    >>> picture_scale((1024, 1024))
    PictureScale(width=512, height=512, inches=2.0)
    """
    width, height = size
    inches = min(max(2.0 * math.sqrt(width / height), 1.7), 3.0)
    times = max(1, round(_CRISP * inches / width))
    part = max(1, math.ceil(width / (_PLENTY * inches) - 0.25))
    return PictureScale(math.ceil(width * times / part), math.ceil(height * times / part), inches)


def shown_pixels(picture: Image.Image, scale: PictureScale) -> np.ndarray:
    """Return a picture's pixels as drawn: shape (height, width, 3), 8 bits."""
    size = (scale.width, scale.height)
    enlarged = picture.width <= scale.width
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return np.asarray(picture.convert("RGB").resize(size, how))


class _Sheet:
    """A figure measured in inches from its top left corner, pictures on whole pixels."""

    def __init__(self, width: float, height: float, dpi: float) -> None:
        self.dpi = dpi
        self.pixels = (math.ceil(width * dpi), math.ceil(height * dpi))
        # A hundredth of a pixel more, since matplotlib cuts off fractions: 2399.9999 is 2399.
        inches = [(side + 0.01) / dpi for side in self.pixels]
        self.figure = ShownFigure(figsize=inches, dpi=dpi, facecolor="white", edgecolor="white")
        self.figure.set_layout_engine("none")

    def lines(self, x: float, y: float, lines: Iterable[str], size: float, **style) -> float:
        """Write lines under one another from y on; return where the next would begin."""
        step = size * _LEADING / POINTS
        width, height = self.pixels[0] / self.dpi, self.pixels[1] / self.dpi
        for line in lines:
            baseline = y + 0.8 * step
            self.figure.text(
                x / width, 1 - baseline / height, line,
                ha="left", va="baseline", **lettering(size, **style),
            )  # fmt: skip
            y += step
        return y

    def box(self, x: float, y: float, width: int, height: int) -> tuple[float, ...]:
        """Figure coordinates of a box so many pixels wide and high, on whole pixels."""
        left = round(x * self.dpi)
        bottom = self.pixels[1] - round(y * self.dpi) - height
        across, up = (side + 0.01 for side in self.pixels)
        return left / across, bottom / up, width / across, height / up


def _height(count: int, size: float) -> float:
    return count * size * _LEADING / POINTS


# --- drawing ----------------------------------------------------------------------------------


@public
def image_grid(
    comparison: Comparison,
    *,
    prompts: Iterable[str] | str | None = None,
    view: str = "pictures",
    page: int | None = None,
) -> Figure:
    """Return a figure of every picture: a row a prompt and seed, a column a recipe.

    Over each column stand the recipe, its bytes, seconds a picture and mean quality, under each
    picture its own PSNR. A recipe that failed is an empty column with its reason. Small
    pictures are enlarged and big ones reduced by whole numbers, and the figure's resolution is
    chosen so that no picture is resampled again: save it with ``dpi="figure"``.

    Parameters
    ----------
    comparison : Comparison
        What `compare` returned or `load_comparison` read.
    prompts : str or iterable of str, optional
        Which prompts to show, in this order; all of them by default.
    view : str
        ``"pictures"``, or ``"errors"`` for what FLIP says of each against the reference's, whose
        own pictures stay.
    page : int, optional
        Which part of a grid that is too large for one figure, from 1 on.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; Jupyter shows it as the last line of a cell.

    Raises
    ------
    ArgumentError
        If a prompt is no prompt of the comparison, nothing is left to show, errors are asked for
        and there is no reference, or the grid needs several pages and none is named.
    UnsupportedError
        If errors are asked for and flip-evaluator isn't installed.

    Examples
    --------
    >>> image_grid(comparison, prompts="a red circle")          # doctest: +SKIP
    """
    content = grid_content(comparison, prompts=prompts)
    if one_of("view", view, VIEWS) == VIEWS[1]:
        content, comparison = _with_errors(content, comparison)
    first = next(iter(comparison.images.values()), None)
    size = comparison.workload.size if first is None else first.size
    return drawn_grid(content, comparison.images, size, page)


def drawn_grid(
    content: GridContent,
    images: Mapping[tuple[str, str, int], Image.Image],
    size: tuple[int, int],
    page: int | None = None,
) -> Figure:
    """Return the figure of a grid's words and its pictures; see `image_grid`.

    Parameters
    ----------
    content : GridContent
        Every word.
    images : mapping
        Pictures by (column's label, prompt, seed).
    size : (int, int)
        Width and height of the pictures in pixels.
    page : int, optional
        Which of its `grid_pages`, from 1 on.

    Raises
    ------
    ArgumentError
        If there are several and none is named, or there is no such page.
    """
    scale = picture_scale(size)
    pages = grid_pages(content, scale)
    if page is None and len(pages) > 1:
        count = units.format_count(len(content.rows) * len(content.columns), "picture")
        raise ArgumentError(
            f"{count} are too many for one figure: ask for one of {len(pages)} pages (page=1 is "
            "the first) or for fewer prompts"
        )
    content = pages[whole_number("page", 1 if page is None else page, most=len(pages)) - 1]
    layout = _Layout(content, scale)
    sheet = _Sheet(layout.width, layout.height, scale.dpi)
    _draw_labels(sheet, layout)
    for column, x in zip(content.columns, layout.lefts, strict=True):
        _draw_heading(sheet, layout, column, x)
        if column.reason is not None:
            _draw_reason(sheet, layout, column, x)
            continue
        for row, y in zip(content.rows, layout.tops, strict=True):
            _draw_cell(sheet, layout, images, column, row, x, y)
    sheet.lines(_MARGIN, layout.bottom + 0.12, layout.footer, _SMALL, colour=_QUIET)
    return sheet.figure


_MOST_PIXELS = 64_000_000  # of a figure: a byte for each of red, green, blue and opacity
_MOST_ACROSS = 16_000  # pixels; no figure can have 65,536


def grid_pages(content: GridContent, scale: PictureScale) -> tuple[GridContent, ...]:
    """Return a grid in parts that each fit one figure, columns first; one part if it fits.

    Parameters
    ----------
    content : GridContent
        The whole grid.
    scale : PictureScale
        How its pictures are shown.
    """
    across = scale.width + _GAP * scale.dpi
    down = scale.height + _CAPTION * scale.dpi
    columns = max(1, int(_MOST_ACROSS / across))
    rows = max(1, int(min(_MOST_PIXELS / (across * min(columns, len(content.columns))),
                          4 * _MOST_ACROSS) / down))  # fmt: skip
    parts = [
        (content.rows[r : r + rows], content.columns[c : c + columns])
        for r in range(0, len(content.rows), rows)
        for c in range(0, len(content.columns), columns)
    ]
    if len(parts) == 1:
        return (content,)
    return tuple(
        dataclasses.replace(
            content,
            columns=some,
            rows=(dataclasses.replace(few[0], first=True), *few[1:]),
            footer=f"page {number} of {len(parts)} · {content.footer}",
        )
        for number, (few, some) in enumerate(parts, 1)
    )


def _with_errors(content: GridContent, comparison: Comparison) -> tuple[GridContent, Comparison]:
    """Return the same grid with error maps in place of pictures, where there are any."""
    maps = error_maps(comparison, {})
    content = dataclasses.replace(
        content, captions=maps.captions, footer=f"{content.footer} · {maps.says}"
    )
    return content, dataclasses.replace(comparison, images={**comparison.images, **maps.images})


class _Layout:
    """Where columns, rows and words of one grid go, in inches from the top left corner."""

    def __init__(self, content: GridContent, scale: PictureScale) -> None:
        self.content, self.scale = content, scale
        self.cell = scale.inches
        self.cell_height = scale.height / scale.dpi
        self._place_columns()
        self._place_rows()

    def _place_columns(self) -> None:
        longest = max((row.prompt for row in self.content.rows), key=len)
        self.label_width = 0.95 if len(longest) < 24 else 1.5
        start = _MARGIN + self.label_width + _GAP
        columns = self.content.columns
        self.lefts = [start + i * (self.cell + _GAP) for i in range(len(columns))]
        self.width = self.lefts[-1] + self.cell + _MARGIN
        self.names = [wrapped(c.name, self.cell, _NAME, bold=True, most=2) for c in columns]
        self.rests = [wrapped(c.rest, self.cell, _REST, most=6) for c in columns]

    def _place_rows(self) -> None:
        titles = [
            _height(len(name), _NAME) + _height(len(rest), _REST)
            for name, rest in zip(self.names, self.rests, strict=True)
        ]
        self.title_height = max(titles)
        facts = max(len(column.facts) for column in self.content.columns)
        y = _MARGIN * 0.8 + self.title_height + 0.03 + _height(facts, _FACT) + 0.09
        self.top = y
        self.tops = []
        for i, row in enumerate(self.content.rows):
            y += _BETWEEN_PROMPTS if row.first and i else 0
            self.tops.append(y)
            y += self.cell_height + _CAPTION
        self.bottom = y
        self.footer = wrapped(self.content.footer, self.width - 2 * _MARGIN, _SMALL)
        self.height = y + 0.12 + _height(len(self.footer), _SMALL) + 0.18


def _draw_labels(sheet: _Sheet, layout: _Layout) -> None:
    room = layout.cell_height + _CAPTION - _height(1, _SEED)
    most = max(1, int(room / _height(1, _PROMPT)))
    for row, y in zip(layout.content.rows, layout.tops, strict=True):
        if row.first:
            lines = wrapped(row.prompt, layout.label_width, _PROMPT, most=most)
            y = sheet.lines(_MARGIN, y, lines, _PROMPT, colour=_INK)
        sheet.lines(_MARGIN, y, [f"seed {row.seed}"], _SEED, colour=_QUIET)


def _draw_heading(sheet: _Sheet, layout: _Layout, column: GridColumn, x: float) -> None:
    i = layout.content.columns.index(column)
    y = sheet.lines(x, _MARGIN * 0.8, layout.names[i], _NAME, bold=True, colour=_INK)
    sheet.lines(x, y, layout.rests[i], _REST, colour=_INK)
    colour = _INK if column.reason is None else _ALARM
    y = _MARGIN * 0.8 + layout.title_height + 0.03
    for number, fact in enumerate(column.facts):
        quiet = column.doubtful and number in (1, 2)
        y = sheet.lines(x, y, [fact], _FACT, colour=_QUIET if quiet else colour)


def _draw_reason(sheet: _Sheet, layout: _Layout, column: GridColumn, x: float) -> None:
    """One empty panel down the whole column, the reason at its top."""
    height = layout.bottom - _CAPTION - layout.top
    _draw_empty(sheet, x, layout.top, layout.scale.width, round(height * sheet.dpi))
    most = max(1, int((height - 0.2) / _height(1, _FACT)))
    lines = wrapped(column.reason, layout.cell - 0.24, _FACT, most=most)
    sheet.lines(x + 0.12, layout.top + 0.1, lines, _FACT, colour=_ALARM)


def _draw_empty(sheet: _Sheet, x: float, y: float, width: int, height: int) -> None:
    left, bottom, across, up = sheet.box(x, y, width, height)
    sheet.figure.add_artist(
        Rectangle((left, bottom), across, up, facecolor=_EMPTY, edgecolor="none", zorder=-1)
    )


def _draw_cell(
    sheet: _Sheet,
    layout: _Layout,
    images: Mapping[tuple[str, str, int], Image.Image],
    column: GridColumn,
    row: GridRow,
    x: float,
    y: float,
) -> None:
    key = (column.label, row.prompt, row.seed)
    scale = layout.scale
    picture = images.get(key)
    if picture is None:
        _draw_empty(sheet, x, y, scale.width, scale.height)
        sheet.lines(x + 0.12, y + 0.1, ["no picture"], _FACT, colour=_ALARM)
        return
    axes = sheet.figure.add_axes(sheet.box(x, y, scale.width, scale.height), label=str(key))
    axes.imshow(shown_pixels(picture, scale), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    caption = layout.content.captions.get(key)
    if caption:
        sheet.lines(x, y + layout.cell_height + 0.02, [caption], _SMALL, colour=_QUIET)
