"""The doctor's jobs: what its children are asked for, and what they find. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..models.source import Source
from ..planning.needs import Needs
from ..recipes import Recipe


@dataclass(frozen=True)
class Place:
    """Where the tiny pipeline lies and how it is run; the same in every cell."""

    folder: Path
    device: str
    dtype: str
    """Compute dtype by its name."""


@dataclass(frozen=True)
class Made:
    """What making the tiny pipeline found."""

    device: str
    """The one that its device means here."""


@dataclass(frozen=True)
class PhaseJob:
    """One phase of one cell."""

    place: Place
    path: str
    weights: str
    via: str
    phase: int
    reference_moved: float = 0.0
    """How far compiling moves the unquantized model."""


@dataclass(frozen=True)
class Verdict:
    """How a phase ended."""

    outcome: str | None
    """None where the cell goes on with its next phase."""
    reason: str = ""


@dataclass(frozen=True)
class CompileJob:
    """Compile the unquantized model, on one of the compiled paths."""

    place: Place
    path: str


@dataclass(frozen=True)
class Moved:
    """How far compiling moved a model from eager, relative norm."""

    moved: float


@dataclass(frozen=True)
class Done:
    """Nothing to tell."""


@dataclass(frozen=True)
class ExamineJob:
    """Find out what the machine can do."""

    device: str


@dataclass(frozen=True)
class Device:
    """One device of the machine."""

    device: str
    name: str
    memory_bytes: int
    free_bytes: int
    detail: str
    """What decides which kernels it has."""


@dataclass(frozen=True)
class Extension:
    """One C++ extension of Quanto's."""

    name: str
    built: bool
    lock: str | None
    """A lock that lies in its folder."""
    folder: str


@dataclass(frozen=True)
class Hub:
    """Where models are cached and whether the Hub may be asked."""

    cache: str
    there: bool
    offline: bool


@dataclass(frozen=True)
class Speed:
    """How fast one Linear layer is in one weights dtype."""

    dtype: str
    weights: str
    kernel: str = ""
    seconds: float | None = None
    """Median of one call."""
    against: str | None = None
    """What the timings show against the unquantized layer; None for that itself."""
    error: str = ""
    """Why the layer can't run."""


@dataclass(frozen=True)
class Machine:
    """What the machine can do."""

    device: str
    devices: tuple[Device, ...]
    threads: int
    busy: float | None
    """Processes that want to run, for each core."""
    imports: dict[str, str]
    """Why libraries can't be imported, by name."""
    extensions: tuple[Extension, ...]
    hub: Hub
    speeds: tuple[Speed, ...]


@dataclass(frozen=True)
class CardJob:
    """Find out what an accelerator is, and what recipes take of it by the plan."""

    device: str
    source: Source
    recipes: tuple[Recipe, ...]
    size: tuple[int, int]
    """Width and height of a picture."""
    dtype: str


@dataclass(frozen=True)
class CardFacts:
    """What an accelerator is; nothing that tells it from others of its kind."""

    device: str
    """The one that is meant here."""
    name: str
    """As its maker calls it."""
    memory_bytes: int
    free_bytes: int
    """With this process's own context on it."""
    capability: str
    """What decides which kernels it has."""
    runtime: str
    """What torch was built for."""
    driver: str | None
    """None where that can't be found out."""
    torch: str
    diffusers: str
    transformers: str
    quanto: str
    needs: dict[str, Needs | None]
    """By the label of a recipe."""
