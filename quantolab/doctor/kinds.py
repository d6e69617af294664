"""The doctor's kinds of job: which function does each."""

from __future__ import annotations

from ..processes.jobs import JobKind
from .jobs import (
    CardFacts,
    CardJob,
    CompileJob,
    Done,
    ExamineJob,
    Machine,
    Made,
    Moved,
    PhaseJob,
    Place,
    Verdict,
)

_HERE = "quantolab.doctor"
MAKE = JobKind(f"{_HERE}.tiny_pipeline:make_pipeline", Place, Made)
PHASE = JobKind(f"{_HERE}.cells:run_phase", PhaseJob, Verdict)
BUILD = JobKind(f"{_HERE}.cells:build_extension", Place, Done)
COMPILE = JobKind(f"{_HERE}.cells:compile_unquantized", CompileJob, Moved)
EXAMINE = JobKind(f"{_HERE}.machine:examine", ExamineJob, Machine)
CARD = JobKind(f"{_HERE}.machine:look_at_card", CardJob, CardFacts)
