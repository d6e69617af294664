"""Which pipelines make videos, and how many frames these have by themselves."""

from __future__ import annotations

import inspect

from ..errors import ArgumentError
from ..quietly import quiet_imports
from .source import Source


def makes_videos(source: Source) -> bool:
    """Return whether a model's pipeline takes a number of frames; imports its class."""
    return _parameter(source) is not None


def video_frames(source: Source, frames: int | None = None) -> int | None:
    """Return how many frames a model's videos have: those asked for, or else its own number.

    None for pictures, and where neither is known. Imports the pipeline's class.

    Raises
    ------
    ArgumentError
        If frames are asked of what makes pictures.
    """
    parameter = _parameter(source)
    if parameter is None:
        if frames is not None:
            raise ArgumentError(f"{source.model!r} makes pictures, which have no frames")
        return None
    return parameter.default if frames is None and isinstance(parameter.default, int) else frames


def _parameter(source: Source) -> inspect.Parameter | None:
    with quiet_imports():
        import diffusers

        cls = getattr(diffusers, source.pipeline or "", None)
    return None if cls is None else inspect.signature(cls.__call__).parameters.get("num_frames")
