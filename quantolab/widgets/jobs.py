"""What panels ask of the process beside the kernel, which has torch; the kernel never loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..models.source import Source
from ..recipes import Recipe
from ..run.jobs import Planned


@dataclass(frozen=True)
class Ahead:
    """What will become of each recipe, and on which device."""

    planned: Planned
    device_name: str
    free_bytes: int | None
    """Free memory of the device; None where it doesn't say."""


@dataclass(frozen=True)
class FetchJob:
    """Bring a Hub model's weights into the local cache."""

    model: str
    variant: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Fetched:
    """Where it lies."""

    folder: str


@dataclass(frozen=True)
class ListJob:
    """List the Linear layers of a model's components."""

    source: Source
    components: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class Listed:
    """The rows of `skip_report` without a skip list."""

    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class ScriptJob:
    """Write the plain Diffusers script of a recipe."""

    recipe: Recipe
    model: str
    dtype: str
    device: str
    prompt: str
    steps: int
    seed: int
    size: tuple[int, int]
    guidance: float | None
    lora: str | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Script:
    """The script."""

    code: str


@dataclass(frozen=True)
class SaveJob:
    """Quantize a model's component, or of a recipe for several the pipeline, and save it."""

    recipe: Recipe
    model: str
    dtype: str
    device: str
    folder: str
    variant: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Saved:
    """What was saved, and where."""

    folder: str
    disk_bytes: int
