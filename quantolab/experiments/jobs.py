"""The jobs of the experiments beside `compare`: what children are asked for, what they find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.source import Source
from ..plain_values import LATER
from ..recipes import Recipe
from ..records import Conditions
from ..run.jobs import TrialJob
from ..shapes import Layer

# --- compiling ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompileJob:
    """Compile one recipe's denoiser in one way, and time it against eager."""

    trial: TrialJob
    way: str
    """One of `run.torch_compile.WAYS`."""
    other_size: tuple[int, int] | None
    """To count what a change of size compiles anew."""


@dataclass(frozen=True)
class CompileFound:
    """What compiling one recipe in one way gave; names as the columns of `compile_report`."""

    graphs: int
    graph_breaks: int
    recompilations: int | None
    compile_seconds: float
    eager_samples: tuple[float, ...]
    compiled_samples: tuple[float, ...]
    difference: float
    conditions: Conditions


# --- sensitivity ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LayersJob:
    """List the layers that recipes quantize in a component, from shapes alone."""

    source: Source
    component: str
    dtype: str
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True)
class LayersFound:
    """Layers of each recipe, in the order of the recipes."""

    layers: tuple[tuple[Layer, ...], ...]


@dataclass(frozen=True)
class LayerSet:
    """Layers that are quantized together."""

    weights: str
    paths: tuple[str, ...]
    words: tuple[str, ...] = field(default=(), metadata=LATER)
    """The word of each, where they haven't all the same."""
    pictures: int = field(default=0, metadata=LATER)
    """How many whole pictures are looked at; 0 looks at calls of the component."""


@dataclass(frozen=True)
class SetError:
    """What quantizing a set of layers did."""

    weight_error: float
    """Relative L2 error of the weights."""
    output_error: float
    """Relative L2 error of the component's output; of pictures, whose values are from 0 to 1, the
    root of the mean squared error of the `typical` one."""
    by_input: tuple[float, ...] = field(default=(), metadata=LATER)
    """The same for each of the inputs by itself."""


def typical(errors: Sequence[float]) -> float:
    """Return the geometric mean of the errors of some pictures: what their mean PSNR tells.

    Some pictures make ten times as much of the same errors as others. In a mean of squares one
    such picture would decide what is good for all.
    """
    least = _LEAST * max(errors, default=0.0)
    if not 0 < least < math.inf:
        return least
    return math.exp(math.fsum(math.log(max(error, least)) for error in errors) / len(errors))


_LEAST = 1e-3  # of the largest error of a picture: one that shows none is worth no more


@dataclass(frozen=True)
class SetsJob:
    """Load what sets of layers are to be quantized in, and wait for `Sets`."""

    trial: TrialJob
    component: str
    """The first of them, whose paths have no component before them."""
    inputs: int
    """How many of the component's calls to look at."""
    results: Path | None
    """File to which each result is added as a line of JSON as soon as it is there."""
    others: tuple[str, ...] = ()
    """More components, ``NAME/path`` in sets. Then errors are those of the denoiser's output,
    whatever component they come from."""
    picture_steps: int = 0
    """Steps of pictures that are looked at; 0 means the workload's."""
    in_float32: bool = False
    """Whether all is computed in float32, with the very values of the weights in the workload's
    dtype and of what they are quantized to."""


@dataclass(frozen=True)
class SetsReady:
    """Under which conditions sets will be measured."""

    conditions: Conditions


@dataclass(frozen=True)
class Sets:
    """Measure what each of some sets does, by itself; all look at the same."""

    sets: tuple[LayerSet, ...]
    pictures: int


@dataclass(frozen=True)
class SetsFound:
    """What each set did, in order."""

    results: tuple[SetError, ...]
    inputs: int
    """Calls of the component, or pictures, that were looked at."""
    output_floor: float
    rounding: float | None = None
    """What rounding to the workload's dtype does to pictures, where all is computed in float32."""


# --- full size ------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepJob:
    """Time single steps of a denoiser with random weights."""

    cls: str
    config: dict[str, Any]
    recipe: Recipe
    dtype: str
    device: str
    side: int
    """Tokens along one side of the picture (see `sample_inputs`)."""
    tokens: int
    """Length of the text."""
    repeats: int
    way: str | None
    """How to compile; None leaves it out."""


@dataclass(frozen=True)
class Kernel:
    """One of the longest-running kernels of a step."""

    name: str
    share: float
    calls: int


@dataclass(frozen=True)
class Steps:
    """Steps in one way of running."""

    first_seconds: float
    samples: tuple[float, ...]
    peak_bytes: int | None
    reserved_bytes: int | None
    other_load: float | None
    kernels: tuple[Kernel, ...]
    difference: float | None = None
    """Of the compiled output from eager, relative norm."""


@dataclass(frozen=True)
class StepsFound:
    """What one recipe weighs, and how long its steps take."""

    device: str
    weight_bytes: int
    predicted_weight_bytes: int
    fill_and_quantize_seconds: float
    fill_and_quantize_peak_bytes: int | None
    weight_classes: dict[str, int]
    """How many Linear layers have which class of weight."""
    eager: Steps
    compiled: Steps | None
    not_compiled: str | None
    """Why there are no compiled steps though they were asked for."""
    conditions: Conditions
