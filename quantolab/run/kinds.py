"""The kinds of job of a comparison: which function does each, and with which records of `jobs`."""

from __future__ import annotations

from ..processes.jobs import JobKind
from .jobs import Encoded, EncodeJob, Looked, LookJob, PlanJob, Planned, TrialFound, TrialJob

LOOK = JobKind("quantolab.run.child:look", LookJob, Looked)
PLAN = JobKind("quantolab.run.child:plan", PlanJob, Planned)
ENCODE = JobKind("quantolab.run.child:encode", EncodeJob, Encoded)
TRIAL = JobKind("quantolab.run.child:run_trial", TrialJob, TrialFound)
