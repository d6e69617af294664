"""The panels' kinds of job: which function does each."""

from __future__ import annotations

from ..processes.jobs import JobKind
from ..run.jobs import PlanJob
from .jobs import (
    Ahead,
    Fetched,
    FetchJob,
    Listed,
    ListJob,
    Saved,
    SaveJob,
    Script,
    ScriptJob,
)

_CHILD = "quantolab.widgets.child"
LOOK_AHEAD = JobKind(f"{_CHILD}:look_ahead", PlanJob, Ahead)
FETCH = JobKind(f"{_CHILD}:fetch", FetchJob, Fetched)
LIST_LAYERS = JobKind(f"{_CHILD}:list_layers", ListJob, Listed)
WRITE_SCRIPT = JobKind(f"{_CHILD}:write_script", ScriptJob, Script)
SAVE_MODEL = JobKind(f"{_CHILD}:save_model", SaveJob, Saved)
