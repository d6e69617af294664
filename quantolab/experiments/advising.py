"""The best use of bytes: `advise` turns sensitivities into a recipe for a budget."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Seconds, checked_arguments, public
from ..backends import check_backend, layer_bytes, unsupported
from ..devices import processor_computes, resolve_device
from ..errors import ArgumentError, UnsupportedError, one_of, whole_number
from ..hub.watching import watching
from ..models.resolving import reference_share, resolve
from ..models.source import Source, find_model
from ..models.wording import recipe_of_components, recipe_of_words
from ..planning.plan import PIPELINE, plan
from ..planning.predict import predict_weight_bytes
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe
from ..report.advised import Advice, AdviceReport, LayerAdvice
from ..run.asked import check_request
from ..run.session import Watch
from ..shapes import Layer
from ..telling import say_line
from ..units import format_bytes, format_count, format_list, parse_bytes
from ..weights import QUANTIZED, REFERENCE, backends_of, in_order, known_word
from .beliefs import Beliefs
from .choosing_words import (
    Group,
    Option,
    Words,
    choose,
    choose_by,
    keep_list,
    predicted_error,
    size_of,
)
from .jobs import LayerSet, typical
from .layer_errors import LayerErrors, NamedSet
from .sensitivity import (
    GROUPS,
    INPUTS,
    grouped,
    in_pictures,
    measured_table,
    prompts_of,
    sensitivity,
)

if TYPE_CHECKING:
    import pandas

_NEEDED = (
    "component", "path", "weights", "saved_bytes", "weight_error", "output_error", "output_floor",
    "compute_dtype",
)  # fmt: skip

_MANY = 200  # layers; of more the blocks get words, not each layer by itself
_RUNGS, _LOWER = 24, 2  # budgets between the least and the most; advice of the next lower is tried
PICTURES, _PICTURES_OF_BLOCKS = 12, 4
"""Whole pictures that decide, unless others are asked for."""

_STEPS, _STEPS_IN_FLOAT32 = 4, 2
"""Of such a picture: what a layer does to it, it does to one of more steps, too. Without rounding
two tell as much as four: either is 1.3 dB from ten steps, layer by layer of the demo model."""

_FLOAT32_BYTES = 1 << 30  # of components that on a CPU are looked at in float32
_FINALS = 12  # recipes, equal but for rounding, that are looked at with it
_ROUNDS, _EACH, _PATIENCE = 4, 3, 2
"""How often what was learnt gives new recipes to try, how many, and how often in vain."""

_GIVEN: dict[Recipe, Advice] = {}


def advice_of(recipe: Recipe) -> Advice:
    """Return what an advised recipe rests on.

    Raises
    ------
    ArgumentError
        If `advise` hasn't given it in this process.
    """
    if recipe not in _GIVEN:
        raise ArgumentError(
            f"the recipe '{recipe}' wasn't advised in this process: advise(...) gives recipes that "
            "can be reported on"
        )
    return _GIVEN[recipe]


@public
def advice_report(recipe: Recipe) -> AdviceReport:
    """Return what an advised recipe rests on, for people: bytes, errors, and each layer's why.

    Parameters
    ----------
    recipe : Recipe
        From `advise`, in this process.

    Raises
    ------
    ArgumentError
        If it wasn't advised here.

    Examples
    --------
    >>> advice_report(advise("demo", "4MB")).plot()              # doctest: +SKIP
    """
    return AdviceReport(advice_of(recipe))


@public
def advise(
    model: str | os.PathLike | None = None,
    budget_bytes: int | float | str | None = None,
    *,
    component: str | None = None,
    components: Iterable[str] | str = (),
    weights: Iterable[str] | str | None = None,
    fits: int | float | str | None = None,
    table: pandas.DataFrame | None = None,
    check: bool = True,
    pictures: int | None = None,
    groups: str = "auto",
    out: str | os.PathLike | None = None,
    name: str | None = None,
    watch: Watch | None = None,
    cancel: threading.Event | None = None,
    stall_seconds: Seconds = STALL_SECONDS,
    **measuring: Any,
) -> Recipe:
    """Return the recipe that does the least damage to pictures within a budget of bytes.

    Every layer, or block, is quantized by itself, and what that does is measured. Then every layer
    gets a dtype of its own, by integer programming over the sum of the squared errors. The choice,
    the best keep-list of each dtype and every plain dtype that fits make the same pictures of a
    few steps; what they show corrects what was believed of single layers, gives new choices, and
    so on, some rounds. The one with the smallest error of the pictures is returned: never one
    that is worse there than a plain dtype, a keep-list, or what was tried for fewer bytes.

    Rounding hides what fine dtypes do to a layer: coarse ones are measured in the pictures, and
    fine ones told from these by the errors of their weights. On a CPU components of at most 1 GiB
    are looked at in float32, with the very values that weights have in `dtype` and that they are
    quantized to: there nothing is hidden, half of the pictures tell what a single layer does, and
    two steps suffice. Recipes whose errors are all below those of rounding then make the pictures
    in `dtype`, which decide, unless the processor has no arithmetic in it.

    The error of several pictures is their geometric mean, that is, their mean PSNR: some pictures
    make ten times as much of the same errors as others, and none shall decide for all.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (the default), a folder in Diffusers layout, or a Hub id.
    budget_bytes : int or str
        Bytes that the components may hold together, or ``"8GB"``.
    component, components : str, iterable of str, optional
        One, or several: the denoiser (the default) and text encoders. The errors of text encoders
        are those that they cause in the denoiser's output.
    weights : str or iterable of str, optional
        The words to choose among, ``"none"`` besides; by default Quanto's four. Those of another
        backend, such as ``("sdnq:int8", "sdnq:uint4-g128")``, must all be its own: a component is
        quantized by one. With `table` by default the words of its rows.
    fits : int or str, optional
        Instead of a budget a card's memory, ``"12GB"``: what all other parts of the pipeline
        leave of it. Activations aren't counted.
    table : pandas.DataFrame, optional
        From `sensitivity` of the same model and component, so that nothing is measured twice.
    check : bool
        Whether to run the candidates; without it the smallest predicted error decides.
    pictures : int, optional
        How many pictures are looked at; by default 12, and 4 where blocks get words. 0 looks at
        the denoiser's output in `inputs` calls instead, as `sensitivity` does: a tenth of the
        work for a large model, and worse recipes.
    groups : str
        ``"layers"``, ``"blocks"``, or ``"auto"``: blocks of models of more than 200 layers.
    out : path, optional
        File that keeps what is measured; the same call goes on with it, and other budgets use it.
    name : str, optional
        What the recipe is called; by default ``"advised 4.20 MB"``.
    watch, cancel, stall_seconds
        As for `compare`.
    **measuring
        What else `sensitivity` takes: ``inputs``, ``prompt``, ``seed``, ``steps``, ``device``, ...

    Returns
    -------
    Recipe
        Whose weight bytes are at most the budget: the unquantized reference if that fits.
        `advice_report` tells why each layer got its word.

    Raises
    ------
    ArgumentError
        If nothing fits, with the smallest possible bytes; if the table is of something else; or
        if words are of several backends.
    UnsupportedError
        If no layer can have one of the words, with the reason; or its backend isn't installed.

    Examples
    --------
    >>> recipe = advise("demo", "4MB")
    >>> print(recipe)                                            # doctest: +SKIP
    int4 x_embedder=int8 proj_out=none
    >>> advice_report(recipe)                                    # doctest: +SKIP
    """
    one_of("groups", groups, ("auto", *GROUPS))
    _check_measuring(model, measuring)
    dtype = measuring.get("dtype", "bfloat16")
    named = {"variant": measuring.get("variant"), "revision": measuring.get("revision")}
    source = find_model(model, weights=False, **named)
    components = (components,) if isinstance(components, str) else tuple(components)
    if table is not None:
        weights, table = _words_of_table(table, weights)
    words, device = checked_words(weights), resolve_device(measuring.get("device", "auto"))
    shapes = Shapes(source, components or (component or source.denoiser,), dtype, words, device)
    is_default = not components and not component
    budget = _budget(shapes, budget_bytes, fits, named)
    if shapes.held({}) <= budget:
        return Recipe(REFERENCE)
    _check_fits(shapes, budget, fits)
    groups = shapes.groups if groups == "auto" else groups
    pictures = _pictures(pictures, groups)
    common = {"watch": watch, "cancel": cancel, "stall_seconds": stall_seconds}
    if table is not None:
        _check_table(table, shapes)
        measuring = {**_as_measured(table), **measuring}
    if table is not None and not check:
        choice = _Choice(shapes, table, budget)
        chosen = min(choice.candidates(), key=choice.predicted)
        return _given(choice, chosen, [], is_default, name)
    if watch is None and table is None:
        say_line(work_text(shapes, groups, measuring, pictures))
    with _measuring(model, shapes, measuring, common, out, pictures) as session:
        if table is None:
            session.expect(_work(shapes, groups) + check * _TRIALS)
            table = _measured(session, shapes, groups, _of_single(pictures, session.in_float32))
        choice = _Choice(shapes, table, budget)
        if not check:
            best = min(choice.candidates(), key=choice.predicted)
            return _given(choice, best, [], is_default, name)
        tried = Search(choice, session, pictures).tried()
        rounding = session.seen(pictures).rounding
    chosen = min(tried, key=lambda one: (one[1], shapes.held(one[0])))[0]
    finals: list[tuple[Spelled, float]] = []
    if (equal := _below(tried, rounding)) and processor_computes(shapes.dtype):
        with _measuring(model, shapes, measuring, common, None, pictures, False) as session:
            finals = _rounded(equal, choice, session, pictures)
        chosen = min(finals, key=lambda one: (one[1], shapes.held(one[0])))[0]
    return _given(choice, chosen, tried, is_default, name, pictures, rounding, finals)


def _below(tried: Sequence[tuple[Spelled, float]], rounding: float | None) -> list[Spelled]:
    """Return recipes that rounding to the compute dtype makes equal: the best, if several."""
    by_error = sorted(tried, key=lambda one: one[1])
    found = [recipe for recipe, error in by_error if rounding and error < rounding]
    return found[:_FINALS] if len(found) > 1 else []


def _rounded(
    equal: Sequence[Spelled], choice: _Choice, session: LayerErrors, pictures: int
) -> list[tuple[Spelled, float]]:
    """Return errors with rounding of some recipes, and of what was looked at so for less."""
    search = Search(choice, session, pictures)
    search.run([*equal, *search.earlier()])
    return search.seen


def _pictures(asked: int | None, groups: str) -> int:
    if asked is None:
        return PICTURES if groups == "layers" else _PICTURES_OF_BLOCKS
    return whole_number("pictures", asked, least=0)


def _of_single(pictures: int, in_float32: bool) -> int:
    """Return how many pictures tell what a single layer does.

    Without rounding half of them: what they say of a layer is 1 dB from what the others say.
    """
    return -(-pictures // 2) if in_float32 else pictures


_TRIALS = 12 + _ROUNDS * _EACH  # recipes that are run for a budget, about


def _check_measuring(model: Any, measuring: Mapping[str, Any]) -> None:
    """Refuse what `sensitivity` doesn't take here, not after the first work."""
    if "recipes" in measuring:
        raise ArgumentError(
            f"advise and advice_cost take no recipes: they choose among {', '.join(QUANTIZED)}, or "
            "the words that weights= names"
        )
    checked_arguments(sensitivity, (model,), measuring)


def _work(shapes: Shapes, groups: str) -> int:
    """Return how many sets of layers are measured by themselves."""
    each = sum(len(grouped(layers, groups)) for layers in shapes.layers.values())
    return each * len(shapes.words)


def work_text(
    shapes: Shapes, groups: str, measuring: Mapping[str, Any], pictures: int = PICTURES
) -> str:
    """Return in a sentence what measuring takes, told before anything runs."""
    each = sum(len(grouped(layers, groups)) for layers in shapes.layers.values())
    weights = format_bytes(shapes.held({}))
    what = format_count(each, groups[:-1])
    about = f"{format_list(list(shapes.layers))} of {shapes.source.model}, {weights} unquantized: "
    words, coarse = len(shapes.words), len(in_pictures(shapes.words))
    inputs = measuring.get("inputs", INPUTS)
    in_float32 = looks_in_float32(shapes, measuring, pictures)
    most = _steps(in_float32)
    steps = min(most, measuring.get("steps") or most)
    more = _TRIALS * pictures * steps
    if not pictures:
        forwards = each * words * inputs
        return (
            f"{about}{what}, {words} words and {format_count(inputs, 'input')} are "
            f"{format_count(forwards, 'forward')}, each from the first changed block on (half of "
            "it on average), then some for the candidates"
        )
    single = _of_single(pictures, in_float32)
    forwards = each * (coarse * single * steps + (words - coarse) * inputs)
    then = (
        f", {format_count(words - coarse, 'more word')} and {format_count(inputs, 'input')},"
        if words > coarse
        else ""
    )
    where = f" of {format_count(pictures, 'picture')}, all in float32" if in_float32 else ""
    if in_float32 and shapes.dtype != "float32" and processor_computes(shapes.dtype):
        where += f", and {_FINALS} at most in {shapes.dtype} where rounding decides"
    return (
        f"{about}{what}, {format_count(coarse, 'word')} and {format_count(single, 'picture')} of "
        f"{format_count(steps, 'step')}{then} are {format_count(forwards, 'forward')}, then about "
        f"{more} for {_TRIALS} recipes{where}"
    )


@public
def advice_cost(
    model: str | os.PathLike | None = None,
    *,
    component: str | None = None,
    components: Iterable[str] | str = (),
    weights: Iterable[str] | str | None = None,
    groups: str = "auto",
    pictures: int | None = None,
    **measuring: Any,
) -> str:
    """Return what advice on a model would take, from its configuration alone.

    Parameters
    ----------
    model, component, components, weights, groups, pictures, **measuring
        As for `advise`.

    Examples
    --------
    >>> advice_cost("FLUX.1-dev")                                # doctest: +SKIP
    """
    one_of("groups", groups, ("auto", *GROUPS))
    _check_measuring(model, measuring)
    source = find_model(model, weights=False)
    components = (components,) if isinstance(components, str) else tuple(components)
    names = components or (component or source.denoiser,)
    dtype, device = measuring.get("dtype", "bfloat16"), measuring.get("device", "auto")
    shapes = Shapes(source, names, dtype, checked_words(weights), resolve_device(device))
    groups = shapes.groups if groups == "auto" else groups
    return work_text(shapes, groups, measuring, _pictures(pictures, groups))


def looks_in_float32(shapes: Shapes, measuring: Mapping[str, Any], pictures: int) -> bool:
    """Return whether recipes are looked at in float32, where rounding hides nothing."""
    if not pictures or shapes.held({}) > _FLOAT32_BYTES:
        return False
    return resolve_device(measuring.get("device", "auto")) == "cpu"


# --- what there is --------------------------------------------------------------------------


def checked_words(weights: Iterable[str] | str | None) -> tuple[str, ...]:
    """Return the words to choose among, from the most precise to the least.

    Raises
    ------
    ArgumentError, UnsupportedError
        If one is none, they are of several backends, or that isn't installed.
    """
    if weights is None:
        return QUANTIZED
    asked = (weights,) if isinstance(weights, str) else tuple(weights)
    words = [known_word("weights", word) for word in asked]
    found = in_order(word for word in words if word != REFERENCE)
    if not found:
        raise ArgumentError(
            "weights names no word to choose; 'none' is always among them, and allowed are "
            f"{format_list(list(QUANTIZED))}, or another backend's such as sdnq:int8"
        )
    if len(used := backends_of(found)) > 1:
        raise ArgumentError(
            f"weights names words of {format_list(list(used))}: a component is quantized by one "
            "backend, so ask for those of one"
        )
    check_backend(used[0])
    return found


class Shapes:
    """Components without their weights."""

    def __init__(
        self,
        source: Source,
        names: tuple[str, ...],
        dtype: str,
        words: tuple[str, ...] = QUANTIZED,
        device: str = "",
    ) -> None:
        from ..models.skeleton import build_skeleton

        self.source, self.names, self.dtype = source, names, dtype
        self.words, self._device = words, device
        self._modules = {n: build_skeleton(source.component(n), dtype=dtype) for n in names}
        self.layers = {name: self._layers(name) for name in names}
        self._fixed = sum(
            predict_weight_bytes(module, {}, dtype) for module in self._modules.values()
        ) - sum(layer_bytes(la, REFERENCE, dtype) for ls in self.layers.values() for la in ls)
        for name, word in ((name, word) for name in names for word in words):
            if self.layers[name] and not self.taking(name, word):
                raise UnsupportedError(unsupported(self.layers[name][0], word, dtype, device))

    def _layers(self, name: str) -> tuple[Layer, ...]:
        """Return the layers that may be quantized."""
        everything = dataclasses.replace(
            reference_share(name), recipe=Recipe(QUANTIZED[0]), word=QUANTIZED[0]
        )
        found = resolve(self._modules[name], everything, dtype=self.dtype, strict=False)
        return tuple(choice.layer for choice in found.quantized)

    def taking(self, name: str, word: str, groups: str = "layers") -> tuple[Layer, ...]:
        """Return the layers of a component that can have a word; of groups, where all can."""
        return tuple(
            layer
            for members in grouped(self.layers[name], groups).values()
            if not any(unsupported(la, word, self.dtype, self._device) for la in members)
            for layer in members
        )

    @property
    def groups(self) -> str:
        """What gets a word of its own."""
        return "blocks" if sum(map(len, self.layers.values())) > _MANY else "layers"

    def held(self, words: Mapping[str, Mapping[str, str]]) -> int:
        """Return the bytes of the components under words by component and path."""
        return self._fixed + sum(
            layer_bytes(layer, words.get(name, {}).get(layer.path, REFERENCE), self.dtype)
            for name, layers in self.layers.items()
            for layer in layers
        )

    def uniform(self, word: str) -> int:
        """Return the bytes of the components with every layer in one word that can have it."""
        return self.held({n: {la.path: word for la in self.taking(n, word)} for n in self.names})

    @property
    def fixed(self) -> int:
        """Bytes of all that isn't the weight of one of the layers."""
        return self._fixed


def _budget(
    shapes: Shapes,
    budget_bytes: float | str | None,
    fits: float | str | None,
    named: Mapping[str, Any],
) -> int:
    if (budget_bytes is None) == (fits is None):
        raise ArgumentError(
            "a budget is needed: bytes, or a size such as 8GB; or fits, a card's memory"
            + ("" if fits is None else ", and not both")
        )
    if fits is None:
        return parse_bytes(budget_bytes)  # type: ignore[arg-type]
    rows = plan(shapes.source.model, REFERENCE, dtype=shapes.dtype, **named)
    rows = rows[rows["component"] != PIPELINE]
    others = rows[~rows["component"].isin(shapes.names)]["weight_bytes"].sum()
    return parse_bytes(fits) - int(others)


def _check_fits(shapes: Shapes, budget: int, fits: float | str | None) -> None:
    smallest = {word: shapes.uniform(word) for word in shapes.words}
    least = min(smallest, key=lambda word: smallest[word])
    others = ""
    if fits is not None:
        taken = format_bytes(parse_bytes(fits) - budget)
        others = f"; the other parts of the pipeline, which components can name too, take {taken}"
    if smallest[least] > budget:
        raise ArgumentError(
            f"{format_list(shapes.names)} of {shapes.source.model!r} does not fit into {budget} "
            f"bytes ({format_bytes(max(budget, 0))}): the least is {least} with {smallest[least]} "
            f"bytes ({format_bytes(smallest[least])}){others}"
        )


def _check_table(table: pandas.DataFrame, shapes: Shapes) -> None:
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise ArgumentError(f"the table is not one of sensitivity: it lacks {', '.join(missing)}")
    for column, wanted in (("component", shapes.names), ("compute_dtype", (shapes.dtype,))):
        other = sorted(set(table[column]) - set(wanted))
        if other:
            raise ArgumentError(
                f"the table's {column} is {other[0]!r}, not {format_list(wanted, 'or')!r}"
            )
    for (name, weights), rows in table.groupby(["component", "weights"]):
        saved = [
            sum(
                layer_bytes(la, REFERENCE, shapes.dtype) - layer_bytes(la, weights, shapes.dtype)
                for la in shapes.taking(name, weights, groups)
            )
            for groups in GROUPS
        ]
        if rows["saved_bytes"].sum() not in saved:
            raise ArgumentError(
                f"the table is not of all layers of {name} of {shapes.source.model!r}: its "
                f"{weights} rows save {rows['saved_bytes'].sum()} bytes, the model {saved[0]}"
            )
    if absent := [name for name in shapes.names if name not in set(table["component"])]:
        raise ArgumentError(f"the table has no rows of {absent[0]}")


def _words_of_table(
    table: pandas.DataFrame, weights: Iterable[str] | str | None
) -> tuple[list[str] | None, pandas.DataFrame]:
    """Return the words to choose among, and the rows that know of them."""
    if "weights" not in table.columns:
        return None, table  # refused with all that it lacks
    there = list(dict.fromkeys(table["weights"]))
    if weights is None:
        return there, table
    asked = [weights] if isinstance(weights, str) else list(weights)
    if absent := [word for word in asked if word not in (*there, REFERENCE)]:
        raise ArgumentError(f"the table has no rows of {absent[0]}; it knows {format_list(there)}")
    return asked, table[table["weights"].isin(asked)]


def _as_measured(table: pandas.DataFrame) -> dict[str, Any]:
    """Return the conditions of a table, as far as it tells them, to measure under the same."""
    first = table.iloc[0].to_dict()
    found = {name: first[name] for name in ("device",) if name in first}
    found |= {name: int(first[name]) for name in ("steps", "inputs") if name in first}
    if "prompt" in first:
        found["prompt"] = tuple(str(first["prompt"]).split(" | "))
    if "seed" in first:
        found["seed"] = tuple(int(seed) for seed in str(first["seed"]).split(", "))
    if "size" in first:
        found["size"] = tuple(int(side) for side in first["size"].split("x"))
    return found


# --- measuring ------------------------------------------------------------------------------


def _measuring(
    model: str | os.PathLike | None,
    shapes: Shapes,
    measuring: Mapping[str, Any],
    common: Mapping[str, Any],
    out: str | os.PathLike | None,
    pictures: int,
    in_float32: bool | None = None,
) -> LayerErrors:
    options = {k: v for k, v in measuring.items() if k not in ("inputs", "prompt", "seed")}
    with watching(cancel=common["cancel"]):
        request = check_request(
            model,
            (Recipe(REFERENCE),),
            prompts_of(model, measuring.get("prompt")),
            seeds=measuring.get("seed", 0),
            repeats=1,
            **options,
        )
    alone = len(shapes.names) == 1
    main = shapes.names[0] if alone else request.source.denoiser
    others = () if alone else tuple(name for name in shapes.names if name != main)
    if strange := [name for name in others if not name.startswith("text_encoder")]:
        raise ArgumentError(
            f"components names {strange[0]!r}: together with the denoiser {main} only text "
            "encoders can be advised"
        )
    inputs = measuring.get("inputs", INPUTS)
    place = None if out is None else Path(out)
    if in_float32 is None:
        in_float32 = looks_in_float32(shapes, measuring, pictures)
    how = {
        "others": others,
        "out": place,
        "picture_steps": min(_steps(in_float32), request.workload.steps),
        "in_float32": in_float32,
    }
    return LayerErrors(request, main, inputs, **how, **common)


def _steps(in_float32: bool) -> int:
    return _STEPS_IN_FLOAT32 if in_float32 else _STEPS


def _measured(session: LayerErrors, shapes: Shapes, groups: str, pictures: int) -> pandas.DataFrame:
    recipes = tuple(Recipe(word) for word in shapes.words)
    asked = {
        name: (recipes, tuple(shapes.taking(name, word, groups) for word in shapes.words))
        for name in shapes.names
    }
    return measured_table(session, asked, groups, pictures)


def _set(words: Mapping[str, Mapping[str, str]], session: LayerErrors) -> NamedSet:
    """Return layers with a word each as a set to be measured."""
    chosen = [
        (path if name == session.component else f"{name}/{path}", word)
        for name, own in words.items()
        for path, word in own.items()
        if word != REFERENCE
    ]
    layers = tuple(Layer(path, 0, 0, False) for path, _ in chosen)
    return NamedSet("mixed", "", layers, tuple(word for _, word in chosen))


# --- choosing -------------------------------------------------------------------------------


Spelled = dict[str, dict[str, str]]
"""The word of each layer, by component and path."""


class _Choice:
    """What can be chosen for a budget, from a table of sensitivities."""

    def __init__(self, shapes: Shapes, table: pandas.DataFrame, budget: int) -> None:
        self.shapes, self.table, self.budget = shapes, table, budget
        self.floor = float(table["output_floor"].iloc[0])
        self.inputs = int(table["inputs"].iloc[0]) if "inputs" in table.columns else 0
        self.pictures = int(table["pictures"].iloc[0]) if "pictures" in table.columns else 0
        self.groups = _groups(table, shapes)
        self.room = budget - shapes.fixed

    def candidates(self) -> list[Words]:
        """Return the words to try, all of which fit."""
        words = in_order(o.word for g in self.groups for o in g.options)
        quantized = [word for word in words if word != REFERENCE]
        least = sum(min(option.bytes for option in group.options) for group in self.groups)
        most = sum(group.option(REFERENCE).bytes for group in self.groups)
        rungs = [int(least + (most - least) * (i / _RUNGS) ** 2) for i in range(_RUNGS)]
        rooms = [self.room, *[rung for rung in rungs if rung < self.room][-_LOWER:]]
        found = [choose(self.groups, room, self.floor) for room in rooms]
        found += [choose(self.groups, self.room, 0.0)]
        found += [
            keep_list(self.groups, word, self.room, self.floor, by_calls=by_calls)
            for word in quantized
            for by_calls in (False, True)
        ]
        found += [{g.key: g.option(word).word for g in self.groups} for word in quantized]
        kept = [words for words in found if words and size_of(self.groups, words) <= self.room]
        if not kept:
            raise ArgumentError(
                f"nothing that the table has rows of fits into {format_bytes(self.budget)}: it "
                f"knows {format_list(quantized)}"
            )
        return kept

    def has(self, spelled: Spelled) -> bool:
        """Return whether all words of a recipe are among those that are chosen from."""
        words = _of_groups(self, spelled)
        return all(words[g.key] in {option.word for option in g.options} for g in self.groups)

    def predicted(self, words: Words) -> float:
        """Return the error that words make together."""
        return predicted_error(self.groups, words, self.floor)

    def spelled(self, words: Words) -> dict[str, dict[str, str]]:
        """Return the word of each layer, by component and path, from those of groups."""
        return {
            name: {
                layer.path: words[name, path]
                for path, members in self._members(name).items()
                for layer in members
            }
            for name in self.shapes.names
        }

    def _members(self, name: str) -> dict[str, tuple[Layer, ...]]:
        paths = {group.path for group in self.groups if group.component == name}
        layers = self.shapes.layers[name]
        kind = "layers" if paths == {layer.path for layer in layers} else "blocks"
        return grouped(layers, kind)

    def same_from_halves(self) -> float | None:
        """Return the share of layers that get the same word from two halves of the inputs."""
        if "errors_by_input" not in self.table.columns or self.inputs < 2:
            return None
        halves = []
        for start in (0, 1):
            table = self.table.copy()
            each = [tuple(errors)[start::2] for errors in table["errors_by_input"]]
            if not all(each):
                return None
            table["output_error"] = [
                typical(es) if self.pictures else math.sqrt(math.fsum(e * e for e in es) / len(es))
                for es in each
            ]
            halves.append(choose(_groups(table, self.shapes), self.room, self.floor))
        one, other = halves
        if one is None or other is None:
            return None
        spelled = [self.spelled(words) for words in (one, other)]
        same = [
            spelled[0][name][layer.path] == spelled[1][name][layer.path]
            for name, layers in self.shapes.layers.items()
            for layer in layers
        ]
        return sum(same) / len(same)


def _groups(table: pandas.DataFrame, shapes: Shapes) -> tuple[Group, ...]:
    found: dict[tuple[str, str], list[Option]] = {}
    for row in table.to_dict("records"):
        options = found.setdefault((row["component"], row["path"]), [])
        if not options:
            options.append(Option(REFERENCE, int(row["bytes_none"]), 0.0, 0.0))
        error = float(row["weight_error"]), float(row["output_error"])
        by_call = float(row.get("call_error", row["output_error"]))
        options.append(Option(row["weights"], int(row["bytes_quantized"]), *error, by_call))
    return tuple(Group(*key, tuple(options)) for key, options in found.items())


class Search:
    """Runs recipes for a budget, and learns from what they do which to run next.

    Parameters
    ----------
    choice : _Choice
        What can be chosen.
    session : LayerErrors
        Runs them.
    pictures : int
        How many whole pictures decide; 0 decides by calls of the denoiser.
    """

    def __init__(self, choice: _Choice, session: LayerErrors, pictures: int) -> None:
        self._choice, self._session, self._pictures = choice, session, pictures
        self._errors: dict[str, tuple[Spelled, float]] = {}

    def tried(self) -> list[tuple[Spelled, float]]:
        """Return recipes that fit with the errors that they were seen to make."""
        choice = self._choice
        self.run([choice.spelled(words) for words in choice.candidates()] + self.earlier())
        if self._pictures:
            self._learn()
        return self.seen

    @property
    def seen(self) -> list[tuple[Spelled, float]]:
        """Recipes that were run, with their errors."""
        return list(self._errors.values())

    def earlier(self) -> list[Spelled]:
        """Return recipes that fit and were run before, for another budget."""
        choice = self._choice
        return [
            spelled
            for spelled in map(self._spelled, self._session.results.mixed(self._pictures))
            if choice.shapes.held(spelled) <= choice.budget and choice.has(spelled)
        ]

    def _learn(self) -> None:
        """Try what is believed to be best, and what may be, as long as that helps."""
        import numpy as np

        choice, dice, vain = self._choice, np.random.default_rng(0), 0
        beliefs = Beliefs(choice.groups, choice.floor)
        taught: set[str] = set()
        for _ in range(_ROUNDS):
            for name, (spelled, error) in self._errors.items():
                if name not in taught:
                    taught.add(name)
                    beliefs.learn(_of_groups(choice, spelled), self._in_units(error))
            before = self._best
            harms = [beliefs.expected(), *(beliefs.drawn(dice) for _ in range(_EACH - 1))]
            found = [choose_by(choice.groups, choice.room, harm) for harm in harms]
            self.run([choice.spelled(words) for words in found if words is not None])
            vain = 0 if self._best < before else vain + 1
            if vain == _PATIENCE:
                return

    @property
    def _best(self) -> float:
        return min(error for _, error in self._errors.values())

    def _in_units(self, error: float) -> float:
        """Return a picture's error in the units of the table, which may be of something else."""
        choice = self._choice
        if choice.pictures == self._pictures:
            return error
        ratios = [
            choice.predicted(_of_groups(choice, spelled)) / seen
            for spelled, seen in self._errors.values()
            if 0 < seen < math.inf
        ]
        return error * sorted(ratios)[len(ratios) // 2] if ratios else error

    def run(self, recipes: Sequence[Spelled]) -> None:
        """Run recipes that weren't run yet."""
        new = [r for r in _unique(recipes) if str(r) not in self._errors]
        if new:
            sets = [_set(recipe, self._session) for recipe in new]
            errors = self._session.measure(sets, self._pictures)
            for recipe, error in zip(new, errors, strict=True):
                self._errors[str(recipe)] = recipe, error.output_error

    def _spelled(self, entry: LayerSet) -> Spelled:
        """Return the word of each layer of a set that was measured before."""
        shapes, main = self._choice.shapes, self._session.component
        words = dict(zip(entry.paths, entry.words, strict=True))
        return {
            name: {
                layer.path: words.get(
                    layer.path if name == main else f"{name}/{layer.path}", REFERENCE
                )
                for layer in layers
            }
            for name, layers in shapes.layers.items()
        }


def _unique(entries: Sequence[dict[str, dict[str, str]]]) -> list[dict[str, dict[str, str]]]:
    seen = {str(entry): entry for entry in entries}
    return list(seen.values())


# --- telling --------------------------------------------------------------------------------


def _given(
    choice: _Choice,
    chosen: Words | dict[str, dict[str, str]],
    tried: list[tuple[dict[str, dict[str, str]], float]],
    is_default: bool,
    name: str | None,
    pictures: int = 0,
    rounding: float | None = None,
    finals: Sequence[tuple[Spelled, float]] = (),
) -> Recipe:
    """Return the recipe of chosen words, and remember what it rests on."""
    spelled: dict[str, dict[str, str]] = (
        choice.spelled(chosen) if any(isinstance(k, tuple) for k in chosen) else chosen  # type: ignore[arg-type, assignment]
    )
    shapes = choice.shapes
    held = shapes.held(spelled)
    name = name or f"advised {format_bytes(choice.budget)}"
    recipe = _worded(spelled, is_default, name)
    errors = [error for words, error in tried if words == spelled]
    words = _of_groups(choice, spelled)
    _GIVEN[recipe] = Advice(
        recipe,
        shapes.source.model,
        shapes.names,
        choice.budget,
        held,
        choice.predicted(words),
        errors[0] if errors else None,
        choice.floor,
        choice.inputs,
        choice.same_from_halves(),
        tuple(_layer_advice(group, words[group.key], choice.floor) for group in choice.groups),
        tuple((str(_worded(w, is_default, None)), shapes.held(w), error) for w, error in tried),
        pictures,
        bool(choice.pictures),
        rounding,
        min((error for _, error in finals), default=None),
        len(finals),
    )
    return recipe


def _worded(spelled: dict[str, dict[str, str]], is_default: bool, name: str | None) -> Recipe:
    if is_default:
        return recipe_of_words(next(iter(spelled.values())), name=name)
    return recipe_of_components(spelled, name=name)


def _of_groups(choice: _Choice, spelled: dict[str, dict[str, str]]) -> Words:
    """Return the word of each group; of one that another table left mixed its commonest."""
    found = {}
    for name in choice.shapes.names:
        for path, members in choice._members(name).items():
            words = [spelled[name][layer.path] for layer in members]
            found[name, path] = max(words, key=words.count)
    return found


def _layer_advice(group: Group, word: str, floor: float) -> LayerAdvice:
    own = group.option(word)
    coarsest = min(group.options, key=lambda option: option.bytes)
    return LayerAdvice(
        group.component, group.path, word, own.bytes, own.output_error, coarsest.output_error,
        _why(group, own, floor),
    )  # fmt: skip


def _why(group: Group, own: Option, floor: float) -> str:
    finer = [option for option in group.options if option.bytes > own.bytes]
    coarser = [option for option in group.options if option.bytes < own.bytes]
    if own.word != REFERENCE and own.output_error <= floor:
        return "its error is below that of rounding: equal to unquantized"
    if not coarser:
        better = min(finer, key=lambda option: option.bytes, default=None)
        more = (
            ""
            if better is None
            else (f"; {better.word} would take {format_bytes(better.bytes - own.bytes)} more")
        )
        return f"the fewest bytes do little harm here{more}"
    worse = max(coarser, key=lambda option: option.bytes)
    return (
        f"{worse.word} would save {format_bytes(own.bytes - worse.bytes)}, and harm more than "
        "these bytes are worth elsewhere"
    )
