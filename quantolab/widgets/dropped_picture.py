"""The settings of a picture that is dropped onto the explorer, or chosen there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget

from ..models.source import DEMO
from ..recipes import Recipe
from ..run.origin import Origin, picture_origin
from ..units import format_list
from ..weights import REFERENCE
from .assets import asset


class DroppedPicture(anywidget.AnyWidget):
    """A button for a PNG file, and the whole panel as the place to drop one on.

    Parameters
    ----------
    take : callable
        Takes the file's name and its first bytes.
    """

    _esm = asset("shared.js", "dropped_picture.js")
    _css = asset("dropped_picture.css")

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        super().__init__()
        self.on_msg(lambda _, said, buffers: take(str(said.get("name", "")), bytes(buffers[0])))


def settings_of(picture: bytes) -> tuple[Origin, dict[str, Any]]:
    """Return a picture's origin, and the arguments of `compare` that make it again.

    Raises
    ------
    ArgumentError
        If it doesn't say what it was made with.
    """
    origin = picture_origin(picture)
    prompt = " ".join(origin.prompt.splitlines())  # the form has one a line
    taken: dict[str, Any] = {"prompts": (prompt,), "seeds": (origin.seed,)}
    for name in ("steps", "guidance", "size", "frames", "dtype"):
        value = getattr(origin, name)
        if value is not None:
            taken[name] = value
    if origin.recipe is not None:
        recipe = Recipe.parse(origin.recipe)
        taken["recipes"] = tuple(dict.fromkeys((Recipe(REFERENCE), recipe)))
        taken["compile"] = origin.compiled
    if origin.model is not None and (origin.model == DEMO or "/" in origin.model):
        taken["model"] = origin.model
    return origin, taken


def taken_sentence(name: str, origin: Origin, taken: dict[str, Any]) -> str:
    """Return what was taken, and what couldn't be."""
    words = {"prompts": "prompt", "seeds": "seed", "recipes": "recipe", "dtype": "compute dtype"}
    said = format_list([words.get(key, key) for key in taken if key != "compile"], "and")
    text = f"Taken from {name or 'the picture'}: {said}."
    if origin.model is not None and "model" not in taken:
        text += f" It was made with {origin.model}, a folder: where that lies it doesn't say."
    return text
