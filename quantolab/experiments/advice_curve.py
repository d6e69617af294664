"""Picture quality against bytes: what advice is worth, measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..arguments import public
from ..errors import ArgumentError
from ..recipes import Recipe
from ..records import OK
from ..units import format_count, parse_bytes
from ..weights import REFERENCE
from .advising import advise, checked_words
from .comparing import compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..report.advised import AdviceCurve

_ADVISING = (
    "component", "components", "weights", "table", "check", "groups", "inputs", "prompt", "seed",
    "pictures",
)  # fmt: skip
_PICTURING = ("prompts", "seeds", "repeats", "resume")


@public
def plot_advice(
    model: str | os.PathLike | None = None,
    budgets: Iterable[int | str] = (),
    ax: Axes | None = None,
    *,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Axes:
    """Draw picture quality against bytes: plain dtypes as points, advice as a line.

    Every recipe's pictures are made and compared with the unquantized ones, as `compare` does;
    the prompts may be others than those of the advice.

    Parameters
    ----------
    model : str or path, optional
        As for `advise`.
    budgets : iterable of int or str
        Bytes, or sizes such as ``"4MB"``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    out : path, optional
        Folder that keeps the comparison.
    **options
        What `advise` takes (``component, weights, groups, inputs, prompt, seed``), what `compare`
        takes (``prompts, seeds``), and what both take (``steps, size, dtype, device, watch``, ...).

    Examples
    --------
    >>> plot_advice("demo", ["2.5MB", "4MB", "6MB"], steps=10)   # doctest: +SKIP
    """
    from ..report.advised import plot_curve

    return plot_curve(advice_curve(model, budgets, out=out, **options), ax)


def advice_curve(
    model: str | os.PathLike | None = None,
    budgets: Iterable[int | str] = (),
    *,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> AdviceCurve:
    """Return what `plot_advice` draws; parameters as there."""
    from ..report.advised import AdviceCurve, CurvePoint
    from ..report.tables import results_table

    sizes = [parse_bytes(budget) for budget in budgets]
    if not sizes:
        raise ArgumentError("budgets is empty; at least one size such as 4MB is needed")
    own = {key: options.pop(key) for key in _ADVISING if key in options}
    pictures = {"repeats": 1} | {key: options.pop(key) for key in _PICTURING if key in options}
    advised = [advise(model, size, **own, **options) for size in sizes]
    parts = tuple(own.get("components", ())) or tuple(filter(None, [own.get("component")]))
    plain = [Recipe(word, components=parts) for word in checked_words(own.get("weights"))]
    recipes = dict.fromkeys([Recipe(REFERENCE), *plain, *advised])
    run = compare(model, list(recipes), out=out, **pictures, **options)
    table = results_table(run)
    rows = {row["recipe"]: row for row in table.to_dict("records") if row["status"] == OK}

    def points(recipes: list[Recipe], sizes: list[int | None]) -> tuple[CurvePoint, ...]:
        return tuple(
            CurvePoint(recipe, row["weight_bytes"], row["psnr_db"], size)
            for recipe, size in zip(recipes, sizes, strict=True)
            if not recipe.is_reference and (row := rows.get(recipe.label)) is not None
        )

    first = table.iloc[0]
    count = format_count(len(run.workload.pairs), "picture")
    title = " · ".join(
        [str(first["model"]), format_count(first["steps"], "step"), first["size"], count]
    )
    return AdviceCurve(title, points(plain, [None] * len(plain)), points(advised, list(sizes)))
