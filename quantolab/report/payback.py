"""When compiling has paid for itself: seconds against pictures, eager and compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import units
from ..arguments import public
from ..errors import ArgumentError
from ..records import OK
from .compiled import name, never_pays, payback_range, pays
from .lettering import page_axes, wrapped

if TYPE_CHECKING:
    import pandas

EAGER_COLOUR, COMPILED_COLOUR = "#D55E00", "#0072B2"  # of Okabe and Ito's, as in the trade-off
_ON_DARK = {EAGER_COLOUR: "#E69F00", COMPILED_COLOUR: "#56B4E9"}
_BEYOND = 2.0  # the plot ends after so many times the break-even
_BEYOND_RANGE = 1.1  # and after so many times the upper end of its range, if that is more
_LEAST, _WITHOUT = 4, 50  # pictures on the axis: at least, and where nothing is ever paid back

_TITLE_SIZE, _TITLE_WIDTH = 9.5, 5.5  # points, inches


@dataclass(frozen=True)
class Payback:
    """Everything the plot shows, before anything is drawn."""

    title: str
    compile_seconds: float
    eager_seconds: float
    """Seconds a picture."""
    compiled_seconds: float
    break_even: int | None
    """After how many pictures compiling has paid for itself; None if it isn't shown to."""
    low: int | None
    high: int | None
    """The same at both ends of the interval of its gain: equal where that has no width."""
    says: str
    """When it has, in words."""
    pictures: int
    """How far the horizontal axis goes."""

    def eager(self, count: float) -> float:
        """Return the seconds of so many eager pictures."""
        return count * self.eager_seconds

    def compiled(self, count: float) -> float:
        """Return the seconds of compiling and so many compiled pictures."""
        return self.compile_seconds + count * self.compiled_seconds


def payback(row: Mapping[str, Any]) -> Payback:
    """Return the lines of one row of a compile report whose status is ok.

    Examples
    --------
    >>> row = compile_report("demo", ["int8"], ways=["fullgraph"]).to_dict("records")[0]
    >>> payback(row).says
    'paid back after 36 to 41 pictures'
    """
    break_even = low = high = None
    if never_pays(row):
        says = "never paid back, compiled isn't faster"
    elif not pays(row):
        says = "not shown to be paid back by these repeats"
    else:
        break_even, (low, high) = int(row["break_even_images"]), payback_range(row)
        ends = f"{low} to " if low < high else ""
        says = f"paid back after {ends}{units.format_count(high, 'picture')}"
    return Payback(
        title=name(row),
        compile_seconds=row["compile_seconds"],
        eager_seconds=row["eager_seconds"],
        compiled_seconds=row["compiled_seconds"],
        break_even=break_even,
        low=low,
        high=high,
        says=says,
        pictures=_axis_end(break_even, high),
    )


def _axis_end(break_even: int | None, high: int | None) -> int:
    """Return how many pictures to show: well beyond the crossing, and all of its range."""
    if break_even is None or high is None:
        return _WITHOUT
    return max(_LEAST, math.ceil(_BEYOND * break_even), math.ceil(_BEYOND_RANGE * high))


@public
def plot_payback(
    row: Mapping[str, Any] | pandas.Series, ax: Axes | None = None, *, dark: bool = False
) -> Axes:
    """Draw the seconds that so many pictures take, eager and compiled, and where they cross.

    Parameters
    ----------
    row : mapping or pandas.Series
        A row of a `compile_report` whose status is ok.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a figure of its own, with nothing behind it.
    dark : bool
        Whether the page behind it is dark.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If the row has no such figures.

    Examples
    --------
    >>> report = compile_report("demo", ["int8"])
    >>> plot_payback(report.iloc[0])
    """
    values = dict(row)
    if values.get("status") != OK:
        status = values.get("status", "not of a compile report")
        raise ArgumentError(f"drawn is a row of a compile report that is ok; this is {status}")
    return draw_payback(payback(values), ax, dark=dark)


def draw_payback(values: Payback, ax: Axes | None = None, *, dark: bool = False) -> Axes:
    """Draw what `payback` returned; other parameters as for `plot_payback`."""
    if ax is None:
        ax = page_axes((6.4, 3.2), (0.11, 0.16, 0.77, 0.66), dark=dark, dpi=160)
    colours = _ON_DARK if dark else {colour: colour for colour in _ON_DARK}
    end = values.pictures
    eager_is_above = values.eager(end) > values.compiled(end)
    for seconds, label, colour, above in (
        (values.eager, "eager", EAGER_COLOUR, eager_is_above),
        (values.compiled, "compiled", COMPILED_COLOUR, not eager_is_above),
    ):
        ax.plot((0, end), (seconds(0), seconds(end)), color=colours[colour], linewidth=2)
        ax.annotate(
            label, (end, seconds(end)), xytext=(5, 5 if above else -5), va="center",
            textcoords="offset points", fontsize=9, color=colours[colour], annotation_clip=False,
        )  # fmt: skip
    ax.set_xlim(0, values.pictures)
    ax.set_ylim(0, None)
    ax.set_xlabel("pictures")
    ax.set_ylabel("seconds, compiling included")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _draw_crossing(ax, values)
    return ax


def _draw_crossing(ax: Axes, values: Payback) -> None:
    ink = ax.xaxis.label.get_color()
    if values.low is not None and values.high is not None and values.low < values.high:
        ax.axvspan(values.low, values.high, color=ink, alpha=0.12, linewidth=0, zorder=0)
    if values.break_even is not None:
        # Where the lines meet, which may lie between two whole pictures.
        meet = values.compile_seconds / (values.eager_seconds - values.compiled_seconds)
        ax.axvline(meet, color=ink, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6, zorder=0)
        ax.plot([meet], [values.eager(meet)], "o", markersize=7, color=ink, zorder=3)
    compiling, compiled, eager = map(
        units.format_seconds,
        (values.compile_seconds, values.compiled_seconds, values.eager_seconds),
    )
    lines = (
        *wrapped(f"{values.title}: {values.says}", _TITLE_WIDTH, _TITLE_SIZE, most=2),
        f"compiling {compiling}, then {compiled} a picture instead of {eager}",
    )
    ax.set_title(
        "\n".join(lines), loc="left", fontsize=_TITLE_SIZE, color=ink, pad=8, parse_math=False
    )
