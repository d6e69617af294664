"""The best use of bytes: `advise` turns sensitivities into a recipe for a budget."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arguments import Seconds, checked_arguments, public
from ..errors import ArgumentError
from ..models.layers import match_layers
from ..models.resolving import resolve
from ..models.source import find_model
from ..planning.predict import predict_weight_bytes
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe
from ..run.asked import check_request
from ..run.session import Watch
from ..shapes import Layer
from ..units import format_bytes, parse_bytes
from ..weights import QUANTIZED, REFERENCE
from .layer_errors import LayerErrors, NamedSet
from .sensitivity import sensitivity

if TYPE_CHECKING:
    import pandas
    import torch

_NEEDED = (
    "component", "path", "weights", "saved_bytes", "output_error", "output_floor", "compute_dtype",
)  # fmt: skip


@public
def advise(
    model: str | os.PathLike | None = None,
    budget_bytes: int | float | str | None = None,
    *,
    component: str | None = None,
    table: pandas.DataFrame | None = None,
    check: bool = True,
    watch: Watch | None = None,
    cancel: threading.Event | None = None,
    stall_seconds: Seconds = STALL_SECONDS,
    **measuring: Any,
) -> Recipe:
    """Return the recipe for a component that does the least damage within a budget of bytes.

    For each weights dtype whose smallest form fits, layers are taken out of quantization in the
    order of error removed for each byte that this costs, as long as bytes are left. Errors of
    layers are taken for independent of each other and of rounding, so squares add up. The best
    of each dtype, and every plain dtype that fits, is then run on the inputs that the table was
    measured with, and the one with the smallest error of the output is returned.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (the default), a folder in Diffusers layout, or a Hub id.
    budget_bytes : int or str
        Bytes that the component may hold, or ``"8GB"``.
    component : str, optional
        By default the denoiser.
    table : pandas.DataFrame, optional
        From `sensitivity` of the same model and component, so that nothing is measured twice.
    check : bool
        Whether to run the candidates; without it the smallest predicted error decides.
    watch, cancel, stall_seconds
        As for `compare`.
    **measuring
        What else `sensitivity` takes: ``inputs``, ``prompt``, ``steps``, ``device``, ...

    Returns
    -------
    Recipe
        Whose weight bytes are at most `budget_bytes`: the unquantized reference if that fits.

    Raises
    ------
    ArgumentError
        If nothing fits, with the smallest possible bytes; or if the table is of something else.

    Examples
    --------
    >>> advise("demo", "4MB")
    Recipe(weights='int4', skip=(...), components=())
    """
    checked_arguments(sensitivity, (model,), measuring)  # refused here, not after the first work
    if budget_bytes is None:
        raise ArgumentError("a budget is needed: bytes, or a size such as 8GB")
    budget = parse_bytes(budget_bytes)
    dtype = measuring.get("dtype", "bfloat16")
    named = {"variant": measuring.get("variant"), "revision": measuring.get("revision")}
    shapes = _shapes(model, component, dtype, **named)
    if shapes.held(REFERENCE, ()) <= budget:
        return Recipe(REFERENCE)
    smallest = {word: shapes.held(word, ()) for word in QUANTIZED}
    least = min(smallest, key=lambda word: smallest[word])
    if smallest[least] > budget:
        raise ArgumentError(
            f"{shapes.name} of {shapes.model!r} does not fit into {budget} bytes "
            f"({format_bytes(budget)}): the least is {least} with {smallest[least]} bytes "
            f"({format_bytes(smallest[least])})"
        )
    common = {"watch": watch, "cancel": cancel, "stall_seconds": stall_seconds}
    if table is None:
        fitting = [word for word in QUANTIZED if smallest[word] <= budget]
        table = sensitivity(model, fitting, component=component, **measuring, **common)
    _check_table(table, shapes)
    measuring = {**_as_measured(table), **measuring}
    best = _candidates(table, shapes, budget, component)
    if not best:
        raise ArgumentError(f"the table has no row of a dtype that fits: {least} does")
    if not check:
        return min(best, key=lambda entry: entry[0])[1]
    plain = [_recipe(word, (), component) for word in smallest if smallest[word] <= budget]
    recipes = list(dict.fromkeys([*(recipe for _, recipe in sorted(best, key=_error)), *plain]))
    errors = _output_errors(model, recipes, component, measuring, common)
    return min(zip(errors, range(len(recipes)), recipes, strict=True))[2]


# --- advising -------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Shapes:
    """A component without its weights."""

    model: str
    name: str
    dtype: str
    module: torch.nn.Module
    layers: tuple[Layer, ...]

    def held(self, weights: str, skip: Sequence[str]) -> int:
        """Return the bytes that the component holds under a recipe."""
        recipe = Recipe(weights, tuple(skip))
        resolved = resolve(self.module, recipe, self.name, self.dtype, strict=False)
        return predict_weight_bytes(self.module, resolved.words, self.dtype)


def _shapes(model, component: str | None, dtype: str, **named: str | None) -> _Shapes:
    from ..models.layers import linear_layers
    from ..models.skeleton import build_skeleton

    source = find_model(model, weights=False, **named)
    part = source.component(component)
    module = build_skeleton(part, dtype=dtype)
    return _Shapes(source.model, part.name, dtype, module, linear_layers(module))


def _check_table(table: pandas.DataFrame, shapes: _Shapes) -> None:
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise ArgumentError(f"the table is not one of sensitivity: it lacks {', '.join(missing)}")
    for column, wanted in (("component", shapes.name), ("compute_dtype", shapes.dtype)):
        other = sorted(set(table[column]) - {wanted})
        if other:
            raise ArgumentError(f"the table's {column} is {other[0]!r}, not {wanted!r}")
    for weights, rows in table.groupby("weights"):
        saved = shapes.held(REFERENCE, ()) - shapes.held(weights, ())
        if rows["saved_bytes"].sum() != saved:
            raise ArgumentError(
                f"the table is not of all layers of {shapes.name} of {shapes.model!r}: its "
                f"{weights} rows save {rows['saved_bytes'].sum()} bytes, the model {saved}"
            )


def _as_measured(table: pandas.DataFrame) -> dict[str, Any]:
    """Return the conditions of a table, as far as it tells them, to measure under the same."""
    first = table.iloc[0].to_dict()
    found = {name: first[name] for name in ("prompt", "device") if name in first}
    found |= {name: int(first[name]) for name in ("seed", "steps", "inputs") if name in first}
    if "size" in first:
        found["size"] = tuple(int(side) for side in first["size"].split("x"))
    return found


def _candidates(
    table: pandas.DataFrame, shapes: _Shapes, budget: int, component: str | None
) -> list[tuple[float, Recipe]]:
    """Return the best recipe of each dtype, with its predicted error."""
    found = []
    for weights in dict.fromkeys(table["weights"]):
        spare = budget - shapes.held(weights, ())
        if spare < 0:
            continue
        rows = table[table["weights"] == weights].to_dict("records")
        kept, error = _best_kept(rows, spare)
        skip = skip_patterns(kept, shapes.layers)
        found.append((error, _recipe(weights, skip, component)))
    return found


def _best_kept(rows: list[dict], spare: int) -> tuple[list[str], float]:
    """Return which rows to keep unquantized, and the error that the others make together."""
    kept, squares = [], 0.0
    for row in sorted(rows, key=lambda row: -_damage(row) / max(row["saved_bytes"], 1)):
        if row["saved_bytes"] <= spare and len(kept) < len(rows) - 1:
            kept.append(row["path"])
            spare -= max(row["saved_bytes"], 0)
        else:
            squares += _damage(row)
    return kept, math.sqrt(squares)


def _damage(row: dict) -> float:
    """Return the square of the error that a row causes beyond rounding."""
    return max(0.0, row["output_error"] ** 2 - row["output_floor"] ** 2)


def skip_patterns(paths: Iterable[str], layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return a short skip list that keeps exactly the layers at or under some paths.

    Containers all of whose layers are kept stand for them. A path that is another layer's leaf
    name too (FLUX has a ``proj_out`` at the top and one in every single block) is written as a
    glob of itself, ``[p]roj_out``, which means the path alone.
    """
    wanted = {
        layer.path
        for path in paths
        for layer in layers
        if layer.path == path or layer.path.startswith(path + ".")
    }
    found: list[str] = []
    left = set(wanted)
    for layer in layers:
        if layer.path not in left:
            continue
        parts = layer.path.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[:count])
            under = {la.path for la in layers if la.path == name or la.path.startswith(name + ".")}
            if under <= wanted and (len(under) > 1 or count == len(parts)):
                exact = set(match_layers((name,), layers)) == under
                found.append(name if exact else f"[{name[0]}]{name[1:]}")
                left -= under
                break
    return tuple(found)


def _recipe(weights: str, skip: Sequence[str], component: str | None) -> Recipe:
    return Recipe(weights, tuple(skip), (component,) if component else ())


def _error(entry: tuple[float, Recipe]) -> float:
    return entry[0]


def _output_errors(model, recipes, component, measuring: dict, common: dict) -> list[float]:
    """Return the error of the output under each recipe, measured."""
    options = {k: v for k, v in measuring.items() if k not in ("inputs", "out", "prompt", "seed")}
    options.pop("groups", None)
    request = check_request(
        model,
        recipes,
        measuring.get("prompt"),
        seeds=(measuring.get("seed", 0),),
        repeats=1,
        **options,
    )
    with LayerErrors(request, component, measuring.get("inputs", 2), **common) as session:
        layers = session.layers(recipes)
        sets = [NamedSet(r.weights, "", found) for r, found in zip(recipes, layers, strict=True)]
        return [error.output_error for error in session.measure(sets)]
