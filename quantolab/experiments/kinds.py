"""The kinds of job of the experiments: which function does each."""

from __future__ import annotations

from ..processes.jobs import JobKind
from .jobs import (
    CompileFound,
    CompileJob,
    LayersFound,
    LayersJob,
    SetsJob,
    SetsReady,
    StepJob,
    StepsFound,
)

_HERE = "quantolab.experiments"
COMPILE = JobKind(f"{_HERE}.compiling_child:measure_compiled", CompileJob, CompileFound)
LAYERS = JobKind(f"{_HERE}.sensitivity_child:list_layers", LayersJob, LayersFound)
SETS = JobKind(f"{_HERE}.sensitivity_child:measure_sets", SetsJob, SetsReady)
STEPS = JobKind(f"{_HERE}.full_size_child:measure_steps", StepJob, StepsFound)
