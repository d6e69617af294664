"""What the explorer's form says, as a value: arguments of `compare`, and code that calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import one_of
from ..models.source import DEMO, Source
from ..recipes import Recipe, as_recipe, default_recipes
from ..records import Comparison, Trial, Workload
from ..run import REPEATS
from ..run.asked import Request, check_request
from ..run.crew import check_workers
from .call_text import Code, call, literal


@dataclass(frozen=True)
class Choice:
    """What is to be compared. Fields are those of `compare`, and so are their defaults.

    Values are as they were typed: only `request` says whether they can be used.
    """

    model: str = DEMO
    recipes: tuple[Recipe, ...] = default_recipes()
    prompts: tuple[str, ...] | None = None
    seeds: tuple[Any, ...] = (0,)
    steps: Any = None
    guidance: Any = None
    size: Any = None
    dtype: str = "bfloat16"
    device: str = "auto"
    repeats: Any = REPEATS
    compile: bool = False
    out: str | None = None
    reference: str | None = None
    variant: str | None = None
    revision: str | None = None
    workers: Any = None
    lora: str | None = None
    frames: Any = None

    def arguments(self) -> dict[str, Any]:
        """Return what differs from the defaults of `compare`, as its keyword arguments."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def request(self, source: Source) -> Request:
        """Return the request that this makes of a model; loads and fetches nothing.

        Raises
        ------
        ArgumentError
            If it can't be run, in the library's own words.
        """
        check_workers(self.workers, trusted=False)
        # The source is that of these already, and workers change nothing of what is asked for.
        found = ("out", "variant", "revision", "workers")
        arguments = {k: v for k, v in self.arguments().items() if k not in found}
        return check_request(**{**arguments, "model": source})

    def code(self) -> str:
        """Return the code that does the same, to be pasted into a cell."""
        options = self.arguments()
        options.pop("model", None)
        for name in ("recipes", "prompts"):
            if name in options:
                options[name] = _items(options[name])
        made = call("comparison = ql.compare", self.model, **options)
        return f"import quantolab as ql\n\n{made}\nql.results_table(comparison)"


def _path_text(given: Any) -> str:
    """Return a path as text; of a LoRA it may stand with its weight."""
    return "{}={}".format(*given) if isinstance(given, tuple) else str(given)


FIELDS = tuple(field.name for field in dataclasses.fields(Choice))


def changed(choice: Choice, **arguments: Any) -> Choice:
    """Return a choice with some arguments of `compare` replaced, in any form that it takes them.

    Raises
    ------
    ArgumentError
        If `compare` has no such argument, or a recipe is none.
    """
    for name in arguments:
        one_of("argument", name, FIELDS)
    values = dict(arguments)
    if "model" in values:
        values["model"] = DEMO if values["model"] is None else str(values["model"])
    if "recipes" in values:
        given = values["recipes"]
        recipes = default_recipes() if given is None else _several(given, (str, Recipe))
        values["recipes"] = tuple(as_recipe(recipe) for recipe in recipes)
    if values.get("prompts") is not None:
        values["prompts"] = _several(values["prompts"], str)
    if "seeds" in values:
        values["seeds"] = _several(values["seeds"], int)
    if values.get("size") is not None:
        values["size"] = tuple(values["size"])
    for name in ("out", "reference", "lora"):
        if values.get(name) is not None:
            values[name] = _path_text(values[name])
    return dataclasses.replace(choice, **values)


def choice_of(comparison: Comparison, asked: Sequence[Trial] = ()) -> Choice:
    """Return the choice that a comparison was made by.

    Parameters
    ----------
    comparison : Comparison
        What came of it.
    asked : sequence of Trial
        All trials that were asked for; by default those that the comparison has.
    """
    workload, asked = comparison.workload, asked or comparison.trials
    return Choice(
        model=workload.model,
        recipes=tuple(dict.fromkeys(trial.recipe for trial in asked)),
        prompts=workload.prompts,
        seeds=workload.seeds,
        steps=workload.steps,
        guidance=workload.guidance,
        size=workload.size,
        dtype=workload.dtype,
        device=workload.device,
        repeats=workload.repeats,
        compile=any(trial.compiled for trial in asked),
        reference=_borrowed_from(comparison),
        variant=workload.variant,
        lora=_carried(workload),
        frames=workload.frames,
    )


def _carried(workload: Workload) -> str | None:
    """Return the LoRA of a run, if its file is still there."""
    lora = workload.lora
    there = lora is not None and Path(lora.file).expanduser().is_file()
    return lora.text if lora is not None and there else None


def _borrowed_from(comparison: Comparison) -> str | None:
    """Return the folder whose pictures judged a run's, if it is still there; the run has a copy."""
    borrowed = comparison.borrowed
    if borrowed is None or not Path(borrowed.folder).expanduser().is_dir():
        return None
    return borrowed.folder


def _several(value: Any, single: type | tuple[type, ...]) -> tuple:
    return (value,) if isinstance(value, single) else tuple(value)


def _items(values: tuple) -> Code:
    """Return a list as code, an item a line if it is long."""
    line = literal(list(values))
    if len(line) <= 70:
        return Code(line)
    return Code("\n".join(["[", *(f"        {literal(value)}," for value in values), "    ]"]))


# --- what is typed -------------------------------------------------------------------------------
# What can't be read stays text, so that the library says what is wrong with it.


def read_lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text that aren't empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_numbers(text: str) -> tuple[Any, ...]:
    """Return whole numbers between commas or spaces.

    Examples
    --------
    >>> read_numbers("0, 7 x")
    (0, 7, 'x')
    """
    return tuple(_number(word, int) for word in text.replace(",", " ").split())


def read_budgets(text: str) -> tuple[str, ...]:
    """Return sizes between commas.

    Examples
    --------
    >>> read_budgets("2.5MB, 4 MB,")
    ('2.5MB', '4 MB')
    """
    return tuple(word.strip() for word in text.split(",") if word.strip())


def read_number(text: str, kind: type) -> Any:
    """Return a number, None for an empty text."""
    return _number(text.strip(), kind) if text.strip() else None


def read_size(text: str) -> Any:
    """Return (width, height) of ``512x512``, None for an empty text."""
    if not text.strip():
        return None
    numbers = [_number(part.strip(), int) for part in text.lower().replace("×", "x").split("x")]
    if len(numbers) == 2 and all(isinstance(number, int) for number in numbers):
        return tuple(numbers)
    return text.strip()


def _number(word: str, kind: type) -> Any:
    try:
        return kind(word)
    except ValueError:
        return word
