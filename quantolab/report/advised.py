"""What was advised, and why: a table, a figure of the layers, and the curve that decides."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from .. import units
from ..recipes import Recipe
from ..shapes import block_of
from ..text_tables import text_columns
from ..weights import MIXED_COLOUR, REFERENCE, in_order, weights_of
from .lettering import POINTS, page_axes, png, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerAdvice:
    """The word that was chosen for a layer or a block."""

    component: str
    path: str
    word: str
    bytes: int
    """Of its weights in that word."""
    error: float
    """Of the output with this alone in its word; 0 where it stays as it is."""
    sensitivity: float
    """The same in the coarsest word: how much the layer matters."""
    why: str


@dataclass(frozen=True)
class Advice:
    """What was advised, and what it rests on."""

    recipe: Recipe
    model: str
    components: tuple[str, ...]
    budget_bytes: int
    weight_bytes: int
    """Of the components under the recipe."""
    predicted_error: float
    measured_error: float | None
    """Of the output over the inputs, or of pictures; None where nothing was checked."""
    output_floor: float
    """What rounding alone makes."""
    inputs: int
    same_from_halves: float | None
    """Share of the layers that get the same word from two disjoint halves of the inputs."""
    choices: tuple[LayerAdvice, ...]
    tried: tuple[tuple[str, int, float], ...]
    """Every recipe that was run: its text, its bytes, its measured error."""
    pictures: int = 0
    """How many whole pictures the measured errors are of: root mean squares, from 0 to 1, of the
    typical picture (their geometric mean)."""
    by_pictures: bool = False
    """Whether the errors of single layers, and so the predicted one, are of pictures, too."""
    picture_floor: float | None = None
    """What rounding to the compute dtype alone does to pictures, where the measured errors are
    without it because all was computed in float32."""
    rounded_error: float | None = None
    """Of pictures with rounding, where those decided because all errors were below it."""
    finals: int = 0
    """How many recipes they decided among."""


class AdviceReport:
    """An advice as people read it; shows itself in a notebook.

    Attributes
    ----------
    advice : Advice
        All its figures.
    """

    def __init__(self, advice: Advice) -> None:
        self.advice = advice

    @property
    def table(self) -> pd.DataFrame:
        """A row a layer or block: its word, its bytes, its error, how much it matters, and why."""
        columns = list(LayerAdvice.__dataclass_fields__)
        rows = [[getattr(choice, name) for name in columns] for choice in self.advice.choices]
        return pd.DataFrame(rows, columns=columns)

    @property
    def tried(self) -> pd.DataFrame:
        """The recipes that were run, best first."""
        rows = sorted(self.advice.tried, key=lambda row: row[2])
        return pd.DataFrame(rows, columns=["recipe", "weight_bytes", "measured_error"])

    def sentences(self) -> tuple[str, ...]:
        """Return what there is to say in sentences."""
        a = self.advice
        parts = units.format_list(a.components)
        said = [
            f"{parts} of {a.model}: {a.weight_bytes} bytes ({units.format_bytes(a.weight_bytes)}) "
            f"of {a.budget_bytes}.",
            *_errors(a),
        ]
        if a.same_from_halves is not None:
            said.append(
                f"{units.format_percent(a.same_from_halves)} of the layers get the same word from "
                f"either half of the {units.format_count(a.inputs, _looked_at(a))}."
            )
        equal = sum(c.word != REFERENCE and c.error <= a.output_floor for c in a.choices)
        if equal:
            said.append(
                f"{units.format_count(equal, 'layer')} with errors below that of rounding can't be "
                "told from unquantized ones."
            )
        return tuple(said)

    def plot(self, ax: Axes | None = None, *, dark: bool = False) -> Axes:
        """Draw layers in order: how much each matters, and in its word's colour what it got."""
        a = self.advice
        title = (
            f"{units.format_list(a.components)} of {a.model}: "
            f"{units.format_bytes(a.weight_bytes)} of {units.format_bytes(a.budget_bytes)}"
        )
        return plot_layers(a.choices, ax, floor=a.output_floor, title=title, dark=dark)

    def __str__(self) -> str:
        heads = ("layer", "word", "bytes", "error", "why")
        rows = [
            (c.path, c.word, units.format_bytes(c.bytes), units.format_digits(c.error), c.why)
            for c in self.advice.choices
        ]
        lines = text_columns([heads, *rows], "llrrl", rule=True)
        return "\n".join([str(self.advice.recipe), "", *self.sentences(), "", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import base64

        said = "".join(f"<p style='margin:4px 0'>{html.escape(s)}</p>" for s in self.sentences())
        figure = png(self.plot().get_figure(root=True))
        picture = base64.b64encode(figure).decode()
        code = html.escape(repr(self.advice.recipe))
        return (
            f"<div class='ql-static'><pre style='white-space:pre-wrap'>{code}</pre>{said}"
            f"<img alt='layers and their words' style='max-width:100%' "
            f"src='data:image/png;base64,{picture}'/>{self.table.to_html(index=False)}</div>"
        )


def _looked_at(advice: Advice) -> str:
    return "picture" if advice.by_pictures else "input"


def _errors(advice: Advice) -> tuple[str, ...]:
    """Return in sentences how far from the unquantized ones outputs or pictures are."""
    digits, predicted, measured = units.format_digits, advice.predicted_error, advice.measured_error
    if not advice.by_pictures:
        said = f"Error of the output: {digits(predicted)} predicted"
        if measured is not None and not advice.pictures:
            said += f", {digits(measured)} measured"
        elif measured is None:
            said += ", not measured"
        sentences = [f"{said}; rounding alone makes {digits(advice.output_floor)}."]
        if advice.picture_floor is not None:
            sentences = [f"{said} from single layers."]
    elif advice.picture_floor is not None:
        sentences = [f"Pictures: {_decibels(predicted)} predicted."]
    else:
        sentences = [
            f"Pictures: {_decibels(predicted)} predicted; rounding alone leaves "
            f"{_decibels(advice.output_floor)}."
        ]
    if measured is not None and advice.pictures:
        made = units.format_count(advice.pictures, "picture")
        place = "the best of" if advice.rounded_error is None else "one of"
        sentences.append(
            f"{made} of few steps, made to choose by: {_decibels(measured)} measured, {place} "
            f"{units.format_count(len(advice.tried), 'recipe')}."
        )
        if advice.picture_floor is not None:
            sentences.append(
                f"Errors are those of float32. In the compute dtype rounding comes on top, which "
                f"alone leaves {_decibels(advice.picture_floor)}."
            )
        if advice.rounded_error is not None:
            sentences.append(
                f"{units.format_count(advice.finals, 'recipe')} with errors below that made the "
                f"pictures with rounding, too: {_decibels(advice.rounded_error)}, the best of them."
            )
    return tuple(sentences)


def _decibels(error: float) -> str:
    """Return a root mean square of pictures as their PSNR."""
    return units.format_decibels(-20 * math.log10(error) if error > 0 else math.inf)


_FULL_NAMES = 72  # layers; of more only the blocks are named
_BAR_INCHES = 0.2
_LEFT, _RIGHT = 0.75, 0.7  # inches beside the bars
_NAME, _ROOM = 7.0, 1.4  # points of a layer's name, and inches under its bar


def plot_layers(
    choices: Sequence[LayerAdvice],
    ax: Axes | None = None,
    *,
    floor: float = 0.0,
    title: str = "",
    dark: bool = False,
) -> Axes:
    """Draw layers in order as bars: sensitivity as height, the word as colour.

    Parameters
    ----------
    choices : sequence of LayerAdvice
        In the order of the model.
    ax : matplotlib.axes.Axes, optional
        Where to; by default a new figure that pyplot doesn't know.
    floor : float
        The error of rounding alone, drawn as a line; 0 draws none.
    title : str
        What was advised.
    dark : bool
        Whether the page behind it is dark.
    """
    named = len(choices) <= _FULL_NAMES
    if ax is None:
        below = _ROOM + 0.55 if named else 0.75
        width = min(max(6.5, len(choices) * _BAR_INCHES + 1), 14) if named else 10.0
        height = 2.9 + below
        place = (
            _LEFT / width, below / height, 1 - (_LEFT + _RIGHT) / width, (2.9 - 0.75) / height
        )  # fmt: skip
        ax = page_axes((width, height), place, dark=dark, dpi=140)
    ink = ax.xaxis.label.get_color()
    finite = [c.sensitivity for c in choices if 0 < c.sensitivity < math.inf]
    low, high = min(finite, default=1e-3) / 2, max(finite, default=1.0)
    words = in_order(choice.word for choice in choices)
    for word in words:
        mine = [i for i, choice in enumerate(choices) if choice.word == word]
        if mine:
            heights = [min(max(choices[i].sensitivity, low), high) for i in mine]
            colour = weights_of(word).colour_on_dark if dark else weights_of(word).colour
            ax.bar(mine, heights, color=colour, label=word, width=0.82)
    ax.set_yscale("log")
    ax.set_ylim(low, high * 1.3)
    ax.set_xlim(-0.7, len(choices) - 0.3)
    ax.grid(visible=False, axis="x")
    ax.set_ylabel("error at its coarsest", fontsize=9)
    if low < floor < high:
        ax.axhline(floor, color=ink, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        ax.annotate(
            "rounding", (1, floor), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=ink,
            annotation_clip=False,
        )  # fmt: skip
    _name_layers(ax, choices, named)
    ax.set_title(title, loc="left", fontsize=9.5, color=ink, pad=26, parse_math=False)
    if choices:
        ax.legend(
            ncols=len(words), fontsize=8.5, frameon=False, loc="lower left",
            bbox_to_anchor=(-0.01, 1), borderaxespad=0.1, handlelength=1, columnspacing=1.4,
            labelcolor=ink,
        )  # fmt: skip
    return ax


def _name_layers(ax: Axes, choices: Sequence[LayerAdvice], named: bool) -> None:
    """Write layers' names under their bars, and beneath them the block that they lie in."""
    ink = ax.xaxis.label.get_color()
    runs = _runs(choices)
    names = {start: choices[start].path for start, _, _ in runs}
    if named:
        for start, end, block in runs:
            if end - start > 1:
                tails = [c.path.removeprefix(block).lstrip(".") for c in choices[start:end]]
                names |= dict(enumerate(tails, start))
        names = dict(sorted(names.items()))
        ax.set_xticks(list(names), [_short(name) for name in names.values()], rotation=90)
        ax.tick_params(axis="x", labelsize=_NAME, length=2, pad=2)
    else:
        ax.set_xticks([start - 0.5 for start, _, _ in runs], [])
        ax.set_xlabel("layers, in order", fontsize=9)
    inches = ax.get_position().width * ax.get_figure(root=True).get_size_inches()[0]
    for start, end, block in runs:
        room = inches * (end - start - 0.3) / len(choices)
        if end - start == 1 or room < text_width("block", _NAME):
            continue
        at = -_ROOM - 0.1 if named else -0.1
        ax.annotate(
            "\n".join(wrapped(block, room, _NAME, most=3)), ((start + end - 1) / 2, 0),
            xycoords=("data", "axes fraction"), xytext=(0, at * POINTS),
            textcoords="offset points", ha="center", va="top", fontsize=_NAME, color=ink,
            annotation_clip=False,
        )  # fmt: skip
        if named:
            line = ax.plot(
                (start - 0.35, end - 0.65), (0, 0), color=ink, linewidth=0.8, alpha=0.6,
                clip_on=False,
            )[0]  # fmt: skip
            line.set_transform(ax.get_xaxis_transform() + ScaledTranslation(
                0, at + 0.03, ax.get_figure(root=True).dpi_scale_trans
            ))  # fmt: skip


def _short(name: str) -> str:
    """Return a layer's name as far as there is room for it, its end at least."""
    while text_width(name, _NAME) > _ROOM - 0.1 and "." in name:
        name = "…" + name.partition(".")[2]
    return name


def _runs(choices: Sequence[LayerAdvice]) -> list[tuple[int, int, str]]:
    """Return where layers of one block begin and end, and its name with its component's."""
    found: list[tuple[int, int, str]] = []
    several = len({choice.component for choice in choices}) > 1
    for i, choice in enumerate(choices):
        block = block_of(choice.path)
        name = f"{choice.component}.{block}" if several else block
        if found and found[-1][2] == name:
            found[-1] = (found[-1][0], i + 1, name)
        else:
            found.append((i, i + 1, name))
    return found


# --- the curve ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurvePoint:
    """A recipe whose pictures were made."""

    recipe: Recipe
    weight_bytes: int
    quality: float
    """Decibels against the unquantized pictures; infinite where they are equal."""
    budget_bytes: int | None = None
    """What it was advised for."""


@dataclass(frozen=True)
class AdviceCurve:
    """What advice is worth in pictures: every value of the plot, before anything is drawn."""

    title: str
    plain: tuple[CurvePoint, ...]
    """One word for all layers."""
    advised: tuple[CurvePoint, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row a recipe, plain ones first."""
        rows = [
            (p.recipe.shown, p.budget_bytes, p.weight_bytes, p.quality, p.recipe.label)
            for p in (*self.plain, *self.advised)
        ]
        return pd.DataFrame(
            rows, columns=["name", "budget_bytes", "weight_bytes", "psnr_db", "recipe"]
        )


def plot_curve(curve: AdviceCurve, ax: Axes | None = None, *, dark: bool = False) -> Axes:
    """Draw picture quality against bytes: plain dtypes as points, advice as a line.

    Parameters
    ----------
    curve : AdviceCurve
        From `plot_advice`'s measuring. Pictures equal to the bit have no place on a scale of
        decibels; they are named in the title.
    ax : matplotlib.axes.Axes, optional
        Where to; by default a new figure that pyplot doesn't know.
    dark : bool
        Whether the page behind it is dark.
    """
    if ax is None:
        ax = page_axes((7, 4.3), (0.1, 0.13, 0.87, 0.73), dark=dark, dpi=150)
    ink = ax.xaxis.label.get_color()
    everything = (*curve.plain, *curve.advised)
    scale, unit = units.byte_unit(max((p.weight_bytes for p in everything), default=1))
    line = sorted(
        (p.weight_bytes / scale, p.quality) for p in curve.advised if math.isfinite(p.quality)
    )
    ax.plot(
        [size for size, _ in line], [quality for _, quality in line], "-o", color=MIXED_COLOUR,
        markersize=5, linewidth=2, label="advised, a word a layer", zorder=3,
    )  # fmt: skip
    halo = [withStroke(linewidth=3, foreground=ax.get_facecolor())]  # where the line runs through
    for point in curve.plain:
        if not math.isfinite(point.quality):
            continue
        word = weights_of(point.recipe.words[0])
        colour = word.colour_on_dark if dark else word.colour
        at = point.weight_bytes / scale, point.quality
        ax.plot(*at, "s", color=colour, markersize=7, zorder=4)
        ax.annotate(
            word.word, at, xytext=(7, -3), textcoords="offset points", va="top", fontsize=9.5,
            color=colour, path_effects=halo, zorder=5,
        )  # fmt: skip
    equal = [p.recipe.shown for p in everything if p.quality == math.inf]
    title = curve.title + (f"\nequal pictures: {', '.join(equal)}" if equal else "")
    ax.set_xlabel(f"bytes of the weights ({unit})")
    ax.set_ylabel("PSNR against unquantized (dB)")
    ax.margins(0.07)
    ax.set_title(title, loc="left", fontsize=9.5, color=ink, parse_math=False)
    ax.legend(frameon=False, fontsize=9, loc="lower right", labelcolor=ink)
    return ax
