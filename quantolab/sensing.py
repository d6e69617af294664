"""What each layer is worth: bytes saved by quantizing it, error caused; and the best use of bytes.

`sensitivity` measures layer by layer, `advise` turns that into a recipe for a budget.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, one_of, whole_number
from .models.layers import Layer, match_layers
from .models.predict import layer_bytes, predict_weight_bytes
from .models.source import find_model
from .recipes import REFERENCE, WEIGHTS, Recipe, as_recipe
from .records import FAILED, Trial
from .run.children import STALL_SECONDS
from .run.request import Request, check_request
from .run.session import Session, Watch
from .units import format_bytes, parse_bytes

if TYPE_CHECKING:
    import pandas
    import torch

GROUPS = ("layers", "blocks")

_JOBS = "quantolab.run.sensitivity_job"
_COLUMNS = (
    "component", "path", "weights", "layers", "parameters",
    "bytes_none", "bytes_quantized", "saved_bytes", "weight_error", "output_error",
    "output_floor", "inputs",
    "model", "device", "device_name", "threads", "compute_dtype", "prompt", "seed", "steps",
    "size", "torch", "diffusers", "quanto",
)  # fmt: skip
_NEEDED = (
    "component", "path", "weights", "saved_bytes", "output_error", "output_floor", "compute_dtype",
)  # fmt: skip


def sensitivity(
    model: str | os.PathLike | None = None,
    recipes: Iterable[Recipe | str] | None = None,
    *,
    component: str | None = None,
    groups: str = "layers",
    inputs: int = 2,
    prompt: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    out: str | os.PathLike | None = None,
    watch: Watch | None = None,
    cancel: threading.Event | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> pandas.DataFrame:
    """Return what quantizing each layer of a component saves, and the error that it causes.

    The component is loaded unquantized, in a process of its own, and runs on inputs that it gets
    while a picture is made. Then one layer (or block) after the other is quantized, the component
    runs on the same inputs, and the layer is put back.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (the default), a folder in Diffusers layout, or a Hub id.
    recipes : iterable of Recipe or str, optional
        Weights dtypes; by default all four. Layers that a recipe skips have no row for it.
    component : str, optional
        ``"transformer"``, ``"text_encoder_2"``, ...; by default the denoiser.
    groups : str
        ``"layers"``: a row a Linear layer. ``"blocks"``: a row a repeated block
        (``transformer_blocks.3``) and one for each container outside them; with large models
        that is much quicker.
    inputs : int
        How many calls of the denoiser to look at, spread over the steps. (A text encoder is
        called once.)
    prompt, seed, steps, guidance, size, dtype, device
        As for `compare`; one picture's worth.
    out : path, optional
        File to which each result is added as soon as it is there. The same call with the same
        file goes on where an earlier one was ended.
    watch, cancel, stall_seconds
        As for `compare`; each set of layers counts as a picture.

    Returns
    -------
    pandas.DataFrame
        A row a weights dtype and layer (or block). ``path``, which works as a skip pattern;
        ``layers, parameters`` in it; ``bytes_none, bytes_quantized, saved_bytes``;
        ``weight_error``, relative L2 error of its weights; ``output_error``, relative L2 error
        of the component's first output with only this quantized (infinite if that is no number
        any more), over all ``inputs`` looked at; ``output_floor``, the error that rounding alone
        makes (one layer's sums in another order; the median of some layers), below which
        nothing can be told; and the conditions.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError
        If the request can't be run.
    Cancelled
        If `cancel` was set.

    Examples
    --------
    >>> table = sensitivity("demo", ["int4"], groups="blocks")
    >>> table.sort_values("output_error").path.tolist()[-1]
    'single_transformer_blocks.0'
    """
    one_of("groups", groups, GROUPS)
    words = WEIGHTS[1:] if recipes is None else recipes
    chosen = _of_component(words, component)
    request = check_request(
        model,
        chosen,
        prompt,
        seeds=(seed,),
        steps=steps,
        guidance=guidance,
        size=size,
        dtype=dtype,
        device=device,
        repeats=1,
    )
    with _Measuring(request, component, inputs, watch, cancel, stall_seconds) as measuring:
        layers = measuring.layers(chosen)
        sets = [
            _Set(recipe.weights, path, members)
            for recipe, found in zip(chosen, layers, strict=True)
            for path, members in _grouped(found, groups).items()
        ]
        return _table(sets, measuring.measure(sets, out), measuring)


def advise(
    model: str | os.PathLike | None = None,
    budget_bytes: int | str | None = None,
    *,
    component: str | None = None,
    table: pandas.DataFrame | None = None,
    check: bool = True,
    watch: Watch | None = None,
    cancel: threading.Event | None = None,
    stall_seconds: float = STALL_SECONDS,
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
    if budget_bytes is None:
        raise ArgumentError("a budget is needed: bytes, or a size such as 8GB")
    budget = parse_bytes(budget_bytes)
    dtype = measuring.get("dtype", "bfloat16")
    shapes = _shapes(model, component, dtype)
    if shapes.held(REFERENCE, ()) <= budget:
        return Recipe(REFERENCE)
    smallest = {word: shapes.held(word, ()) for word in WEIGHTS[1:]}
    least = min(smallest, key=lambda word: smallest[word])
    if smallest[least] > budget:
        raise ArgumentError(
            f"{shapes.name} of {shapes.model!r} does not fit into {budget} bytes "
            f"({format_bytes(budget)}): the least is {least} with {smallest[least]} bytes "
            f"({format_bytes(smallest[least])})"
        )
    common = {"watch": watch, "cancel": cancel, "stall_seconds": stall_seconds}
    if table is None:
        fitting = [word for word in WEIGHTS[1:] if smallest[word] <= budget]
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


# --- measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Set:
    """Layers that are quantized together."""

    weights: str
    path: str
    layers: tuple[Layer, ...]

    def to_dict(self) -> dict:
        return {"weights": self.weights, "paths": [layer.path for layer in self.layers]}


class _Measuring:
    """A session that measures sets of layers of one component."""

    def __init__(
        self, request: Request, component, inputs, watch, cancel, stall_seconds: float
    ) -> None:
        self.component = component or request.source.denoiser
        self._inputs = whole_number("inputs", inputs)
        self._bar = None
        if watch is None:
            from .progress import ProgressBar

            watch = self._bar = ProgressBar(unit="layers")
        self._session = Session(
            request, total=0, watch=watch, cancel=cancel, stall_seconds=stall_seconds
        )
        self._work = tempfile.TemporaryDirectory(prefix="quantolab-sensitivity-")
        self.conditions: dict[str, Any] = {}

    def __enter__(self) -> _Measuring:
        self._session.__enter__()
        self._session.plan()
        return self

    def __exit__(self, *error) -> None:
        self._session.__exit__(*error)
        self._work.cleanup()
        if self._bar is not None:
            self._bar.close()

    @property
    def request(self) -> Request:
        """What is asked for, the device resolved."""
        return self._session.request

    def layers(self, recipes: Sequence[Recipe]) -> list[tuple[Layer, ...]]:
        """Return the layers that each recipe quantizes."""
        workload = self.request.workload
        request = {
            "kind": f"{_JOBS}:list_layers",
            "model": str(self.request.source.folder),
            "component": self.component,
            "dtype": workload.dtype,
            "recipes": [recipe.to_dict() for recipe in recipes],
        }
        found = self._session.job(request, Path(self._work.name) / "layers")
        return [tuple(Layer(**layer) for layer in layers) for layers in found]

    def measure(self, sets: Sequence[_Set], out=None) -> list[dict]:
        """Return ``weight_error`` and ``output_error`` of each set."""
        session, work = self._session, Path(self._work.name)
        results = _Results(None if out is None else Path(out), self._identity())
        left = [entry for entry in sets if results.of(entry) is None]
        session.total = len(left)
        value = None
        if left or not results.conditions:
            encoded = session.encode(work)
            trial = Trial(Recipe(REFERENCE), FAILED)
            request = {
                **session.trial_request(trial, encoded),
                "kind": f"{_JOBS}:measure_sets",
                "component": self.component,
                "inputs": self._inputs,
                "sets": [entry.to_dict() for entry in left],
                "results": str(results.path.absolute()) if results.path else None,
            }
            value = session.job(request, work / "measure")
            results.add(left, value)
        session.enter_stage("finished")
        self.conditions = results.conditions
        return [results.of(entry) for entry in sets]

    def _identity(self) -> dict:
        """Return what must agree before results of two calls may stand in one table."""
        workload = dataclasses.asdict(self.request.workload)
        names = ("prompts", "seeds", "steps", "guidance", "size", "dtype", "device", "revision")
        chosen = {name: workload[name] for name in names}
        folder = self.request.source.component(self.component).folder
        files = [(str(p), *p.stat()[6:9:2]) for p in sorted(folder.glob("*.safetensors"))]
        text = json.dumps([chosen, files, self.component, self._inputs], default=str)
        return {"measured": hashlib.sha256(text.encode()).hexdigest()[:16]}


class _Results:
    """Results by set, kept in a file of JSON lines if one is given."""

    def __init__(self, path: Path | None, identity: dict) -> None:
        self.path = path
        self.conditions: dict[str, Any] = {}
        self._found: dict[str, dict] = {}
        if path is None:
            return
        lines = _json_lines(path) if path.exists() else []
        if lines and lines[0] != identity:
            raise ArgumentError(
                f"{str(path)!r} holds results of another call (model, prompt, steps, ...); name "
                "another file"
            )
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Whole lines only: the last may have been cut when the process was ended.
        path.write_text("".join(json.dumps(line) + "\n" for line in [identity, *lines[1:]]))
        for line in lines[1:]:
            if "conditions" in line:
                self.conditions = line["conditions"]
            else:
                self._found[_key(line)] = line

    def of(self, entry: _Set) -> dict | None:
        """Return a set's result, if it is there."""
        return self._found.get(_key(entry.to_dict()))

    def add(self, entries: Sequence[_Set], value: dict) -> None:
        """Take what the job gave; it has written the results to the file itself."""
        for entry, result in zip(entries, value["results"], strict=True):
            self._found[_key(entry.to_dict())] = result
        seen = {name: value[name] for name in ("inputs", "output_floor")}
        self.conditions = {**value["conditions"], **seen}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"conditions": self.conditions}) + "\n")


def _json_lines(path: Path) -> list[dict]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        lines.append(value)
    return lines


def _key(entry: dict) -> str:
    return json.dumps([entry["weights"], entry["paths"]])


def _of_component(recipes, component: str | None) -> tuple[Recipe, ...]:
    """Return recipes for one component alone; the reference has nothing to measure."""
    single = isinstance(recipes, (str, Recipe))
    chosen = [as_recipe(recipe) for recipe in ((recipes,) if single else recipes)]
    names = (component,) if component else ()
    found = tuple(Recipe(r.weights, r.skip, names) for r in chosen if not r.is_reference)
    if not found:
        raise ArgumentError(f"recipes names nothing to quantize; allowed: {', '.join(WEIGHTS[1:])}")
    twice = [r.weights for r in found if [f.weights for f in found].count(r.weights) > 1]
    if twice:
        raise ArgumentError(f"{twice[0]} is asked for more than once")
    return found


def _grouped(layers: Sequence[Layer], groups: str) -> dict[str, tuple[Layer, ...]]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        name = layer.path if groups == "layers" else block_of(layer.path)
        found.setdefault(name, []).append(layer)
    return {name: tuple(members) for name, members in found.items()}


def block_of(path: str) -> str:
    """Return the repeated block that a layer lies in, or the outermost container, or itself.

    Examples
    --------
    >>> block_of("transformer_blocks.3.attn.to_q"), block_of("norm_out.linear")
    ('transformer_blocks.3', 'norm_out')
    """
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def _table(sets: Sequence[_Set], results: Sequence[dict], measuring: _Measuring):
    import pandas as pd

    request, found = measuring.request, measuring.conditions
    workload = request.workload
    common = {
        "component": measuring.component,
        "model": request.source.model,
        "device": workload.device,
        "compute_dtype": workload.dtype,
        "prompt": workload.prompts[0],
        "seed": workload.seeds[0],
        "steps": workload.steps,
        "size": "x".join(map(str, workload.size)),
        **{k: found[k] for k in ("inputs", "output_floor", "device_name", "threads")},
        **{k: found[k] for k in ("torch", "diffusers", "quanto")},
    }
    rows = [
        {**common, **_bytes(entry, workload.dtype), **result}
        for entry, result in zip(sets, results, strict=True)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _bytes(entry: _Set, dtype: str) -> dict:
    before = sum(layer_bytes(layer, REFERENCE, dtype) for layer in entry.layers)
    after = sum(layer_bytes(layer, entry.weights, dtype) for layer in entry.layers)
    return {
        "path": entry.path,
        "weights": entry.weights,
        "layers": len(entry.layers),
        "parameters": sum(layer.parameters for layer in entry.layers),
        "bytes_none": before,
        "bytes_quantized": after,
        "saved_bytes": before - after,
    }


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
        kept = match_layers(skip, self.layers, self.name)
        return predict_weight_bytes(self.module, weights, self.dtype, kept.keys())


def _shapes(model, component: str | None, dtype: str) -> _Shapes:
    from .models.layers import linear_layers
    from .models.skeleton import build_skeleton

    source = find_model(model, weights=False)
    part = source.component(component)
    module = build_skeleton(part)
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
    inputs = measuring.get("inputs", 2)
    with _Measuring(request, component, inputs, **common) as session:
        layers = session.layers(recipes)
        sets = [_Set(r.weights, "", found) for r, found in zip(recipes, layers, strict=True)]
        return [result["output_error"] for result in session.measure(sets)]
