"""What was advised, and why: a table, a figure of the layers, and the curve that decides."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from .. import units
from ..recipes import Recipe
from ..text_tables import text_columns
from ..weights import REFERENCE, WORDS, weights_of
from .lettering import ShownAxes, ShownFigure, png

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
    """Relative error of the output over the inputs; None where nothing was checked."""
    output_floor: float
    """What rounding alone makes."""
    inputs: int
    same_from_halves: float | None
    """Share of the layers that get the same word from two disjoint halves of the inputs."""
    choices: tuple[LayerAdvice, ...]
    tried: tuple[tuple[str, int, float], ...]
    """Every recipe that was run: its text, its bytes, its measured error."""


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
            f"Error of the output: {units.format_digits(a.predicted_error)} predicted"
            + _measured(a)
            + f"; rounding alone makes {units.format_digits(a.output_floor)}.",
        ]
        if a.same_from_halves is not None:
            said.append(
                f"{units.format_percent(a.same_from_halves)} of the layers get the same word from "
                f"either half of the {units.format_count(a.inputs, 'input')}."
            )
        equal = sum(c.word != REFERENCE and c.error <= a.output_floor for c in a.choices)
        if equal:
            said.append(
                f"{units.format_count(equal, 'layer')} with errors below that of rounding can't be "
                "told from unquantized ones."
            )
        return tuple(said)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw layers in order: how much each matters, and in its word's colour what it got."""
        return plot_layers(self.advice.choices, ax)

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


def _measured(advice: Advice) -> str:
    if advice.measured_error is None:
        return ", not measured"
    return f", {units.format_digits(advice.measured_error)} measured"


def plot_layers(choices: Sequence[LayerAdvice], ax: Axes | None = None) -> Axes:
    """Draw layers in order as bars: sensitivity as height, the word as colour.

    Parameters
    ----------
    choices : sequence of LayerAdvice
        In the order of the model.
    ax : matplotlib.axes.Axes, optional
        Where to; by default a new figure that pyplot doesn't know.
    """
    if ax is None:
        figure = ShownFigure(figsize=(8, 3.4), dpi=140)
        ax = figure.add_axes((0.09, 0.36, 0.89, 0.52), axes_class=ShownAxes)
    places = range(len(choices))
    finite = [c.sensitivity for c in choices if 0 < c.sensitivity < float("inf")]
    low = min(finite, default=1e-3) / 2
    for word in WORDS:
        mine = [i for i in places if choices[i].word == word]
        if mine:
            heights = [min(max(choices[i].sensitivity, low), max(finite, default=1)) for i in mine]
            ax.bar(mine, heights, color=weights_of(word).colour, label=word, width=0.85)
    ax.set_yscale("log")
    ax.set_ylim(low, None)
    ax.set_ylabel("error at its coarsest", fontsize=8)
    if len(choices) <= 80:
        ax.set_xticks(list(places), [c.path for c in choices], rotation=90, fontsize=5)
    else:
        ax.set_xlabel("layers, in order")
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(ncols=len(WORDS), fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


def plot_curve(
    plain: Sequence[tuple[str, int, float]],
    advised: Sequence[tuple[int, float]],
    ax: Axes | None = None,
    *,
    title: str = "",
) -> Axes:
    """Draw picture quality against bytes: plain dtypes as points, advice as a line.

    Parameters
    ----------
    plain : sequence of (str, int, float)
        Word, bytes, decibels.
    advised : sequence of (int, float)
        Bytes, decibels.
    ax : matplotlib.axes.Axes, optional
        Where to; by default a new figure that pyplot doesn't know.
    title : str
        What was measured, how.
    """
    if ax is None:
        figure = ShownFigure(figsize=(7, 4.4), dpi=150)
        ax = figure.add_axes((0.1, 0.14, 0.87, 0.76), axes_class=ShownAxes)
        ax.spines[["top", "right"]].set_visible(False)
    scale, unit = units.byte_unit(max([b for _, b, _ in plain] + [b for b, _ in advised]))
    line = sorted(advised)
    ax.plot(
        [b / scale for b, _ in line], [q for _, q in line], "-o", color="#E69F00", markersize=4,
        label="advised, a word a layer",
    )  # fmt: skip
    for word, size, quality in plain:
        ax.plot(size / scale, quality, "s", color=weights_of(word).colour, markersize=7)
        ax.annotate(
            word, (size / scale, quality), xytext=(6, -10), textcoords="offset points", fontsize=9,
            color=weights_of(word).colour,
        )  # fmt: skip
    ax.set_xlabel(f"bytes of the weights ({unit})")
    ax.set_ylabel("PSNR against unquantized (dB)")
    ax.set_title(title, loc="left", fontsize=9, parse_math=False)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return ax
