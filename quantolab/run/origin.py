"""Where a picture comes from, kept in its own PNG file: prompt, seed, recipe, model, versions.

Two text chunks: ``parameters``, in the one form that A1111's web interface writes and other
programs show (its wiki's "PNG info"; no specification is published), and ``quantolab``, the same
as JSON and whole. Pixels are the same with and without them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from .. import __version__
from ..arguments import public
from ..errors import ArgumentError
from ..hub.names import read_hub_name
from ..measure.frames import frame_count, frame_size, save_png
from ..models.source import DEMO
from ..plain_values import LATER, from_dict, to_dict
from ..recipes import Recipe
from ..records import Conditions, Workload

_OWN, _COMMON = "quantolab", "parameters"
_LONGEST = 1 << 20  # signs of a chunk that is read; PIL's own limit is the same


@dataclass(frozen=True)
class Origin:
    """What a picture was made with; what isn't known is None."""

    prompt: str
    seed: int
    recipe: str | None = None
    """As `Recipe.parse` reads it."""
    model: str | None = None
    """``demo``, a Hub id, or the last part of a folder's name: where it lies is nobody's matter."""
    revision: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    dtype: str | None = None
    """Compute dtype."""
    compiled: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    lora: str | None = field(default=None, metadata=LATER)
    """Name of the file of its LoRA, with its weight."""
    frames: int | None = field(default=None, metadata=LATER)
    """How many a video has that was made, all of them on one sheet; None for a picture."""


def origin_of(
    workload: Workload,
    recipe: Recipe,
    place: tuple[str, int],
    conditions: Conditions | None,
    *,
    compiled: bool = False,
) -> Origin:
    """Return the origin of the picture of a prompt and seed."""
    prompt, seed = place
    versions = {"quantolab": __version__}
    if conditions is not None:
        versions |= {name: getattr(conditions, name) for name in ("torch", "diffusers", "quanto")}
    return Origin(
        prompt,
        seed,
        str(recipe),
        _public_name(workload.model),
        workload.revision,
        workload.steps,
        workload.guidance,
        workload.size,
        workload.dtype,
        compiled,
        versions,
        None if workload.lora is None else Path(workload.lora.text).name,
        workload.frames,
    )


def _public_name(model: str) -> str:
    if model == DEMO:
        return model
    hub = None if Path(model).exists() else read_hub_name(model)
    return str(hub) if hub is not None else Path(model).name


def write_picture(picture: Any, path: Path, origin: Origin) -> None:
    """Write a picture as PNG, with its origin."""
    size = frame_size(picture.size, frame_count(picture))
    origin = dataclasses.replace(origin, size=size)  # some pipelines change what was asked
    own = json.dumps(to_dict(origin), ensure_ascii=False)
    save_png(picture, path, {_COMMON: common_text(origin), _OWN: own})


def common_text(origin: Origin) -> str:
    """Return an origin as the text that other programs show.

    Examples
    --------
    >>> print(common_text(Origin("a fox", 7, "int8", "demo", steps=20, size=(128, 128))))
    a fox
    Steps: 20, Seed: 7, Size: 128x128, Model: demo, Weights: int8
    """
    size = None if origin.size is None else "x".join(map(str, origin.size))
    versions = [f"{name} {version}" for name, version in origin.versions.items()]
    settings = {
        "Steps": origin.steps,
        "CFG scale": origin.guidance,
        "Seed": origin.seed,
        "Size": size,
        "Frames": origin.frames,
        "Model": origin.model,
        "Weights": origin.recipe,
        "LoRA": origin.lora,
        "Compute dtype": origin.dtype,
        "Version": "; ".join(versions) or None,
    }
    said = [f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None]
    return f"{origin.prompt}\n{', '.join(said)}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text


@public
def picture_origin(picture: str | os.PathLike[str] | bytes) -> Origin:
    """Return what a picture was made with, from its own PNG file.

    Parameters
    ----------
    picture : path or bytes
        A PNG file, or what it holds: one of a run's ``images``, or one that A1111's web
        interface or a program like it has made (prompt, seed, steps, guidance scale and size are
        understood then; a negative prompt isn't).

    Returns
    -------
    Origin
        With the fields `prompt`, `seed`, `recipe`, `model`, `steps`, `guidance`, `size`,
        `dtype`, `versions`.

    Raises
    ------
    ArgumentError
        If it is no PNG file, or holds no such words.
    """
    name = "the picture" if isinstance(picture, bytes) else str(picture)
    words = _words(picture, name)
    try:
        if _OWN in words:
            origin = from_dict(Origin, json.loads(words[_OWN]), _OWN)
            Recipe.parse(origin.recipe or "none")
            return origin
        if _COMMON in words:
            return _from_common(words[_COMMON])
    except (ValueError, RecursionError) as error:  # ArgumentError is one
        raise ArgumentError(f"{name}: what it says of its origin makes no sense: {error}") from None
    raise ArgumentError(
        f"{name} doesn't say what it was made with: its PNG file has neither a {_OWN!r} nor a "
        f"{_COMMON!r} text (converting or sending a picture often drops them)"
    )


def _words(picture: str | os.PathLike[str] | bytes, name: str) -> dict[str, str]:
    """Return the text chunks of a PNG file, those before its pixels alone."""
    from PIL import Image

    if not isinstance(picture, bytes) and not Path(picture).expanduser().is_file():
        raise ArgumentError(f"{name} is no file")
    where = BytesIO(picture) if isinstance(picture, bytes) else Path(picture).expanduser()
    try:
        with Image.open(where, formats=("PNG",)) as opened:
            found = opened.info
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "its words are too long" if "too large" in str(error) else "it is none, or broken"
        raise ArgumentError(f"{name} can't be read as a PNG picture: {why}") from None
    wanted = {key: str(found[key]) for key in (_OWN, _COMMON) if isinstance(found.get(key), str)}
    if any(len(text) > _LONGEST for text in wanted.values()):
        raise ArgumentError(f"{name}: what it says of its origin is too long")
    return wanted


def _from_common(text: str) -> Origin:
    """Read A1111's form: prompt, perhaps a negative one, and a last line of settings."""
    lines = text.strip().split("\n")
    settings = dict(re.findall(r'([A-Z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)', lines[-1]))
    if "Seed" not in settings:
        raise ValueError("no line with a seed")
    prompt = "\n".join(lines[:-1]).split("\nNegative prompt:")[0].strip()
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", settings.get("Size", ""))
    return from_dict(
        Origin,
        {
            "prompt": prompt,
            "seed": int(settings["Seed"]),
            "steps": int(settings["Steps"]) if "Steps" in settings else None,
            "guidance": float(settings["CFG scale"]) if "CFG scale" in settings else None,
            "size": [int(size[1]), int(size[2])] if size else None,
        },
        _COMMON,
    )
