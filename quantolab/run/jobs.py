"""The jobs of a comparison: what a child is asked for, and what it finds. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..models.source import Source
from ..recipes import Recipe
from ..records import Conditions, Timing, Workload


@dataclass(frozen=True)
class PlanJob:
    """Resolve the device, and each recipe against the model's shapes."""

    source: Source
    device: str
    dtype: str
    components: tuple[str, ...]
    """Those whose bytes are counted, whatever a recipe does with them."""
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe will do."""

    predicted_weight_bytes: int
    kept_layers: tuple[str, ...]
    """Full paths, component first."""
    components: tuple[str, ...]
    """Those that it quantizes."""


@dataclass(frozen=True)
class Planned:
    """What planning found."""

    device: str
    plans: tuple[RecipePlan, ...]
    """In the order of the recipes."""


@dataclass(frozen=True)
class EncodeJob:
    """Encode prompts once for all trials."""

    source: Source
    prompts: tuple[str, ...]
    dtype: str
    device: str
    path: Path
    """Where they go."""


@dataclass(frozen=True)
class Encoded:
    """Whether this pipeline's prompts can be encoded ahead; only then they are written."""

    ahead: bool


@dataclass(frozen=True)
class TrialJob:
    """Run one recipe on a workload."""

    source: Source
    workload: Workload
    recipe: Recipe
    components: tuple[str, ...]
    """Those whose bytes are counted."""
    compiled: bool = False
    encoded: Path | None = None
    """File of encoded prompts; None has the trial encode them itself."""


@dataclass(frozen=True)
class TrialFound:
    """What a trial found; its pictures lie in ``images`` in the job's folder."""

    weight_bytes: int
    file_bytes: int
    peak_bytes: int | None
    load_seconds: float
    compile_seconds: float | None
    timing: Timing
    notes: tuple[str, ...]
    conditions: Conditions
    picture_size: tuple[int, int] | None = None


IMAGES = "images"
"""Folder of a trial's pictures, ``000.png`` and so on, in its job's."""
