"""Memory against quality, or seconds: a point a recipe, its seconds as size and in words."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .. import units
from ..arguments import public
from ..errors import one_of
from ..records import OK, Comparison
from ..weights import MIXED_COLOUR, QUANTIZED, REFERENCE, is_word, weights_of
from .labels import Box, Spot, place_labels
from .lettering import (
    DARK_PAPER,
    INK_ON_DARK,
    POINTS,
    ShownAxes,
    ShownFigure,
    text_width,
    wrapped,
)
from .tables import (
    COLUMNS,
    is_doubtful,
    plain_rows,
    reference_row,
    require_columns,
    results_table,
    stands_in,
)

# --- what is drawn where ------------------------------------------------------------------------


@dataclass(frozen=True)
class TradeoffPoint:
    """One recipe that has bytes."""

    label: str
    weights: str
    compiled: bool
    weight_bytes: int
    quality: float | None
    """Mean PSNR in decibels, infinite for identical pictures, or SSIM; None for the reference.
    Where nothing was judged, seconds a picture."""
    seconds: float | None
    doubtful: bool = False
    """Whether its seconds show no difference to the reference's."""
    low: float | None = None
    high: float | None = None
    """95 % interval of the quality over pictures, where there is one."""

    @property
    def shown_seconds(self) -> float | None:
        """Its seconds, unless they would be read as a difference that the table denies."""
        return None if self.doubtful else self.seconds


@dataclass(frozen=True)
class Tradeoff:
    """Every value of the plot, before anything is drawn."""

    points: tuple[TradeoffPoint, ...]
    reference: TradeoffPoint | None
    left_out: tuple[str, ...]
    """Recipes that can't be drawn, each with why: ``"int2 (failed)"``."""
    logarithmic: bool
    """Whether the bytes span more than a factor of ten."""
    unit: tuple[int, str]
    """Bytes and name of the unit of the bytes' axis."""
    quality: str
    """Column on the vertical axis."""


_DECADE = 10


def tradeoff(table: pd.DataFrame, *, quality: str = "psnr_db") -> Tradeoff:
    """Return the points of the plot, from a results table or one read back from a file.

    Raises
    ------
    ArgumentError
        If it is no results table, or `quality` is no column that can be drawn.
    """
    require_columns(table, COLUMNS)
    one_of("quality", quality, tuple(QUALITIES))
    records = plain_rows(table)
    position = reference_row(table)
    if position is None and all(record[quality] is None for record in records):
        quality = SECONDS  # nothing was judged
    against = None if position is None else records[position]
    reference = None if against is None else _point(against, None, None)
    points, left_out, stand_in = [], [], stands_in(records)
    for i, record in enumerate(records):
        if record["status"] != OK:
            left_out.append(f"{record.get('name') or record['recipe']} ({record['status']})")
        elif record["weight_bytes"] is None:
            left_out.append(f"{record.get('name') or record['recipe']} (no bytes measured)")
        elif record["recipe"] == stand_in:
            left_out.append(f"{record.get('name') or record['recipe']} (judges the others)")
        elif i != position and record[quality] is None:
            missing = "seconds" if quality == SECONDS else "quality"
            left_out.append(f"{record.get('name') or record['recipe']} (no {missing} measured)")
        elif i != position:
            points.append(_point(record, record[quality], against, quality))
    sizes = [p.weight_bytes for p in [*points, *([reference] if reference else [])]]
    return Tradeoff(
        points=tuple(points),
        reference=reference,
        left_out=tuple(left_out),
        logarithmic=bool(sizes) and max(sizes) > _DECADE * min(sizes),
        unit=units.byte_unit(max(sizes, default=1)),
        quality=quality,
    )


def _point(
    record: dict[str, Any],
    quality: float | None,
    reference: dict[str, Any] | None,
    name: str = "",
) -> TradeoffPoint | None:
    if record["weight_bytes"] is None:
        return None
    return TradeoffPoint(
        label=record.get("name") or record["recipe"],
        weights=record["weights"],
        compiled=str(record["compiled"]) == "True",
        weight_bytes=int(record["weight_bytes"]),
        quality=None if quality is None else float(quality),
        seconds=record["latency_seconds"],
        doubtful=is_doubtful(record, reference),
        low=record.get(_INTERVALS.get(name, ("", ""))[0]),
        high=record.get(_INTERVALS.get(name, ("", ""))[1]),
    )


@dataclass(frozen=True)
class QualityAxis:
    """Where the points stand on the vertical axis: identical pictures in a band of their own."""

    low: float
    high: float
    identical: float | None
    """Height at which infinite values are drawn; None if there are none."""


def quality_axis(values: list[float], *, span: float) -> QualityAxis:
    """Return limits that leave room for labels, at least `span` apart."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    room = max(high - low, span)
    middle = (low + high) / 2
    low, high = min(low, middle - room / 2), max(high, middle + room / 2)
    if len(finite) == len(values):
        return QualityAxis(low - 0.16 * room, high + 0.16 * room, None)
    return QualityAxis(low - 0.16 * room, high + 0.5 * room, high + 0.3 * room)


# --- drawing ------------------------------------------------------------------------------------

SECONDS = "latency_seconds"
QUALITIES = {
    "psnr_db": "PSNR against the reference (dB)",
    "ssim": "SSIM against the reference",
    SECONDS: "seconds a picture",
}
_INTERVALS = {
    "psnr_db": ("psnr_low_db", "psnr_high_db"),
    SECONDS: ("latency_low_seconds", "latency_high_seconds"),
}
_LEAST_SPAN = {"psnr_db": 6.0, "ssim": 0.05}

_NEUTRAL = weights_of(REFERENCE)
_QUIET, _QUIET_ON_DARK = _NEUTRAL.colour, _NEUTRAL.colour_on_dark
COLOURS = {word: weights_of(word).colour for word in QUANTIZED}
"""Colour of each weights word's marker. Circles for all, since areas of different shapes can't be
compared."""
_LARGEST = 260.0  # square points: the slowest recipe's marker
_SMALLEST = 30.0
_CROSS = 42.0  # of a recipe whose seconds show nothing
_LABEL_SIZE = 9.0
_LABEL_WIDTH = 1.75  # inches


@public
def plot_tradeoff(
    table: pd.DataFrame | Comparison,
    ax: Axes | None = None,
    *,
    quality: str = "psnr_db",
    **kwargs: Any,
) -> Axes:
    """Draw memory against quality, a point a recipe: up and to the left is better.

    A circle's area is in proportion to the seconds a picture takes, which its label also says;
    hollow ones are compiled, and where the table has no verdict on the seconds there is a cross.
    Lines are 95 % intervals of the quality over pictures. The reference has no PSNR against itself,
    so it is a vertical line at its bytes. Where no recipe was judged, seconds a picture stand in
    the quality's place, and down and to the left is better. Recipes without figures are left out
    and named under the plot.

    Parameters
    ----------
    table : pandas.DataFrame or Comparison
        From `results_table`, or read back from ``results.csv``; of a comparison, its table.
    ax : matplotlib.axes.Axes, optional
        Where to draw; its limits are set. By default a new figure that pyplot doesn't know, and
        that Jupyter shows when the Axes are a cell's last line.
    quality : str
        Column to draw: ``"psnr_db"``, ``"ssim"`` or ``"latency_seconds"``.
    **kwargs
        Passed on to `matplotlib.axes.Axes.scatter`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If it is no results table, or `quality` is another word.

    Examples
    --------
    >>> plot_tradeoff(pd.read_csv("run/results.csv"))           # doctest: +SKIP
    """
    if isinstance(table, Comparison):
        table = results_table(table)
    values = tradeoff(table, quality=quality)
    if ax is None:
        ax = tradeoff_axes(table)
    ends = [
        v for p in values.points for v in (p.quality, p.low, p.high)
        if v is not None and (v is p.quality or math.isfinite(v))
    ]  # fmt: skip
    if values.quality == SECONDS:  # from 0: what differs by little shall look so
        axis = QualityAxis(0.0, 1.25 * max(ends, default=1.0), None)
    else:
        axis = quality_axis(ends, span=_LEAST_SPAN[values.quality])
    _set_axes(ax, values, axis, values.quality)
    _draw_points(ax, values, axis, kwargs)
    _draw_reference(ax, values)
    _draw_labels(ax, values, axis)
    _draw_note(ax, values)
    return ax


def tradeoff_axes(table: pd.DataFrame, *, dark: bool = False) -> Axes:
    """Return the Axes that `plot_tradeoff` makes for itself, in a figure that pyplot doesn't know.

    Parameters
    ----------
    table : pandas.DataFrame
        Whose model and circumstances stand over the plot.
    dark : bool
        Whether they are for a dark page.
    """
    figure = ShownFigure(figsize=(8, 5.4), dpi=160)
    ax = figure.add_axes((0.13, 0.19, 0.84, 0.72), axes_class=ShownAxes)
    ax.spines[["top", "right"]].set_visible(False)
    quiet = _QUIET_ON_DARK if dark else _QUIET
    ax.set_title(_headline(table), loc="left", fontsize=10, color=quiet, pad=12, parse_math=False)
    if dark:
        figure.set_facecolor(DARK_PAPER)
        ax.set_facecolor(DARK_PAPER)
        ax.spines[["left", "bottom"]].set_color(INK_ON_DARK)
        ax.tick_params(colors=INK_ON_DARK, which="both")
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_color(INK_ON_DARK)
    return ax


def _headline(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    row = next((r for r in plain_rows(table) if r["status"] == OK), plain_rows(table)[0])
    where = row.get("device_name") or row["device"]
    steps = units.format_count(row["steps"], "step")
    parts = (row["model"], steps, row["size"], row["compute_dtype"], where)
    return " · ".join(map(str, parts))


def _set_axes(ax: Axes, values: Tradeoff, axis: QualityAxis, quality: str) -> None:
    scale, unit = values.unit
    sizes = [p.weight_bytes / scale for p in _everyone(values)]
    if values.logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
        steps = (1, 2, 5) if max(sizes) < 200 * min(sizes) else (1,)
        ax.xaxis.set_major_locator(LogLocator(subs=steps))
        ax.xaxis.set_major_formatter(lambda x, _: units.format_digits(x, 6))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(0, max(sizes, default=1) * 1.12)
    ax.set_ylim(axis.low, axis.high)
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(axis.low, axis.high)
    top = axis.high if axis.identical is None else axis.identical - 0.1 * (axis.high - axis.low)
    best = 1.0 if quality == "ssim" else math.inf
    ticks = [t for t in ticks if axis.low <= t <= min(top, best + 1e-9)]
    texts = [units.format_digits(t, 6) for t in ticks]
    if axis.identical is not None:
        ticks, texts = [*ticks, axis.identical], [*texts, "identical"]
        ax.axhline(axis.identical, color=_QUIET, linewidth=0.7, linestyle=":", zorder=0)
    ax.set_yticks(ticks, texts)
    ax.set_xlabel(f"weights in memory ({unit})")
    ax.set_ylabel(QUALITIES[quality])
    ax.grid(visible=True, color=_colour(ax, REFERENCE), alpha=0.12, linewidth=0.7)
    ax.set_axisbelow(True)


def _everyone(values: Tradeoff) -> list[TradeoffPoint]:
    return [*values.points, *([values.reference] if values.reference else [])]


def _height_of(point: TradeoffPoint, axis: QualityAxis) -> float:
    return point.quality if math.isfinite(point.quality) else axis.identical


def marker_areas(points: tuple[TradeoffPoint, ...]) -> tuple[float, ...]:
    """Return each marker's area in square points, in proportion to its seconds."""
    slowest = max((p.shown_seconds for p in points if p.shown_seconds), default=None)
    if slowest is None:
        return (_SMALLEST * 3,) * len(points)
    return tuple(
        max(_SMALLEST, _LARGEST * p.shown_seconds / slowest) if p.shown_seconds else _SMALLEST
        for p in points
    )


def _colour(ax: Axes, weights: str) -> Any:
    """Return a recipe's colour; the reference's is the ink of these axes, white on dark paper."""
    if weights == REFERENCE:
        return ax.xaxis.label.get_color()
    if "+" in weights:
        return MIXED_COLOUR
    row = weights_of(weights) if is_word(weights) else _NEUTRAL
    return row.colour_on_dark if _is_dark(ax) else row.colour


def _is_dark(ax: Axes) -> bool:
    return sum(to_rgb(ax.get_facecolor())) < 1.5


def _draw_points(ax: Axes, values: Tradeoff, axis: QualityAxis, kwargs: dict[str, Any]) -> None:
    for point, area in zip(values.points, marker_areas(values.points), strict=True):
        colour = _colour(ax, point.weights)
        style = {
            "s": area,
            "facecolors": "none" if point.compiled else colour,
            "edgecolors": colour if point.compiled else ax.get_facecolor(),
            "linewidths": 1.8 if point.compiled else 1.0,
            "zorder": 3.5 if point.compiled else 3,
        }
        if point.doubtful:  # no circle at all: a small one would be read as few seconds
            style = {
                "s": _CROSS,
                "marker": "x",
                "facecolors": colour,
                "linewidths": 1.8,
                "zorder": 3,
            }
        x = point.weight_bytes / values.unit[0]
        if point.low is not None and point.high is not None:
            ends = (max(point.low, axis.low), min(point.high, axis.high))
            ax.vlines(x, *ends, colors=[colour], linewidth=1.2, zorder=2.5)
        ax.scatter([x], [_height_of(point, axis)], **(style | kwargs))


def _draw_reference(ax: Axes, values: Tradeoff) -> None:
    if values.reference is not None:
        x = values.reference.weight_bytes / values.unit[0]
        ax.axvline(x, color=_colour(ax, REFERENCE), linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)


def _draw_labels(ax: Axes, values: Tradeoff, axis: QualityAxis) -> None:
    """Write every label where it covers neither another nor a marker, as far as that goes."""
    dpi = ax.get_figure(root=True).dpi
    texts, spots = [], []
    areas = marker_areas(values.points)
    for point, area in zip(values.points, areas, strict=True):
        where = (point.weight_bytes / values.unit[0], _height_of(point, axis))
        words = label_lines(point.label, point.shown_seconds)
        texts.append(_label(ax, words, where, _colour(ax, point.weights)))
        radius = math.sqrt(area) / 2 + 1
        spots.append(Spot(*map(float, ax.transData.transform(where)), radius * dpi / POINTS))
    lines = []
    if values.reference is not None:
        x = values.reference.weight_bytes / values.unit[0]
        foot = axis.low + 0.06 * (axis.high - axis.low)
        words = label_lines(f"reference: {values.reference.label}", values.reference.seconds)
        texts.append(_label(ax, words, (x, foot), _colour(ax, REFERENCE)))
        spots.append(Spot(*map(float, ax.transData.transform((x, foot))), 0.0))
        lines.append(spots[-1].x)
    sizes = [(b.width, b.height) for b in (t.get_window_extent() for t in texts)]
    frame = Box(*ax.get_window_extent().extents.tolist())
    placed = place_labels(spots, sizes, frame=frame, upright=lines, step=dpi / POINTS)
    for text, spot, box in zip(texts, spots, placed, strict=True):
        across, up = box.left - spot.x, box.bottom - spot.y
        text.set_position((across * POINTS / dpi, up * POINTS / dpi))
        if box.distance(spot.x, spot.y) > spot.radius + 8 * dpi / POINTS:
            _draw_leader(ax, spot, box)


def label_lines(label: str, seconds: float | None) -> tuple[str, ...]:
    """Return a point's label as lines: recipe and seconds, neither torn apart needlessly."""
    lines = wrapped(label, _LABEL_WIDTH, _LABEL_SIZE, most=4)
    if seconds is None:
        return lines
    duration = units.format_seconds(seconds)
    together = f"{lines[-1]} · {duration}"
    if text_width(together, _LABEL_SIZE) <= _LABEL_WIDTH:
        return (*lines[:-1], together)
    return (*lines, duration)


def _label(ax: Axes, lines: tuple[str, ...], where: tuple[float, float], colour: str) -> Any:
    # A halo in the colour of the paper keeps grid lines out of the letters.
    halo = withStroke(linewidth=2.5, foreground=ax.get_facecolor())
    return ax.annotate(
        "\n".join(lines), where, xytext=(0, 0), textcoords="offset points",
        ha="left", va="bottom", fontsize=_LABEL_SIZE, color=colour, parse_math=False, zorder=5,
        annotation_clip=False, path_effects=[halo],
    )  # fmt: skip


def _draw_leader(ax: Axes, spot: Spot, box: Box) -> None:
    """Draw a thin line from a point to the nearest edge of a label that had to move away."""
    ends = [(spot.x, spot.y), box.nearest(spot.x, spot.y)]
    (x0, y0), (x1, y1) = ax.transData.inverted().transform(ends).tolist()
    ax.plot([x0, x1], [y0, y1], color=_QUIET, linewidth=0.7, zorder=2, label="_leader")


def _draw_note(ax: Axes, values: Tradeoff) -> None:
    """Under the axis label, wherever that ends up."""
    notes = []
    if values.points:
        circles = [p for p in values.points if not p.doubtful]
        area = "Area of a circle: seconds a picture. " if circles else ""
        better = "Down" if values.quality == SECONDS else "Up"
        notes.append(f"{area}{better} and to the left is better.")
        if any(p.compiled for p in circles):
            notes[0] += " Hollow: compiled."
        if any(p.low is not None for p in values.points):
            over = "" if values.quality == SECONDS else " over pictures"
            notes[0] += f" Lines: 95 % intervals{over}."
        if values.quality == SECONDS:
            notes.append("Nothing was judged: without a reference (none) there is no quality.")
        doubtful = [p.label for p in values.points if p.doubtful]
        if doubtful:
            notes.append(f"Crosses: no verdict on speed, so no seconds ({', '.join(doubtful)}).")
    else:
        notes.append("No recipe has a quality to draw.")
    if values.left_out:
        notes.append("Not drawn: " + ", ".join(values.left_out))
    width = ax.get_window_extent().width / ax.get_figure(root=True).dpi
    lines = itertools.chain.from_iterable(wrapped(note, width, 8) for note in notes)
    ax.annotate(
        "\n".join(lines), (0.5, 0), xycoords=ax.xaxis.label, xytext=(0, -4),
        textcoords="offset points", ha="center", va="top", fontsize=8,
        color=_QUIET_ON_DARK if _is_dark(ax) else _QUIET,
        parse_math=False, annotation_clip=False,
    )  # fmt: skip
