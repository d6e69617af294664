"""Library calls as text: what a panel does, to be pasted into a cell."""

from __future__ import annotations

import json
from typing import Any

from ..recipes import Recipe

_WIDTH = 88  # characters of a line, as formatters break it


class Code(str):
    """A text that is Python already; every other value is written as Python writes it."""

    __slots__ = ()


def call(function: str, *arguments: Any, **options: Any) -> str:
    """Return a call as text; options that are None are left out.

    Examples
    --------
    >>> call("ql.load", "demo", "int8", dtype=None, device="cpu")
    'ql.load("demo", "int8", device="cpu")'
    """
    parts = [literal(value) for value in arguments]
    parts += [f"{name}={literal(value)}" for name, value in options.items() if value is not None]
    line = f"{function}({', '.join(parts)})"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{function}(", *(f"    {part}," for part in parts), ")"])


def literal(value: Any) -> str:
    """Return a value as Python source, texts in double quotes."""
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, Recipe):
        return _recipe(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(literal(item) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def _recipe(recipe: Recipe) -> str:
    """Return a recipe as its word or text, or as a call where it is more than that."""
    if isinstance(recipe.weights, str) and recipe == Recipe(recipe.weights):
        return (
            call("ql.Recipe", recipe.weights, name=recipe.name)
            if recipe.name
            else literal(recipe.weights)
        )
    fields = ("skip", "components", "layers", "name", "activations")
    return call("ql.Recipe", recipe.weights, **{f: getattr(recipe, f) or None for f in fields})
