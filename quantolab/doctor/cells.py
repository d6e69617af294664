"""What a child process does for the path matrix: one phase of one cell, and what comes before."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from ..backends.quanto.as_shipped import first_unpack, use_as_shipped
from ..errors import UnsupportedError, with_kind
from ..processes.jobs import Desk
from ..weights import REFERENCE
from . import paths_diffusers, paths_quantolab
from .bench import Bench
from .jobs import CompileJob, Done, Moved, PhaseJob, Place, Verdict
from .judging import FAILS, UNSUPPORTED, Finding
from .tiny_pipeline import tiny_pipeline

PHASES = {"diffusers": paths_diffusers.PHASES, "quantolab": paths_quantolab.PHASES}
_COMPILED = {
    "compile full graph": paths_diffusers.compiled_whole,
    "compile of repeated blocks": paths_diffusers.compiled_blocks,
}


def run_phase(asked: PhaseJob, desk: Desk) -> Verdict:
    """Run one phase of a cell."""
    phase = PHASES[asked.via][asked.path][asked.phase]
    bench = _bench(asked.place, asked.weights, desk, asked.reference_moved)
    if asked.via == "diffusers":
        use_as_shipped(bench.tiny.extensions)
    try:
        finding = phase(bench)
    except Exception as error:
        if _raised_here(error.__traceback__) and not isinstance(error, UnsupportedError):
            raise  # a mistake of ours is no outcome
        traceback.print_exc()  # into the job's log
        finding = Finding(*_outcome(error))
    return Verdict(None) if finding is None else Verdict(finding.outcome, finding.reason)


def build_extension(asked: Place, desk: Desk) -> Done:
    """Build Quanto's extension as plain Quanto does at its first int4 forward.

    Where that fails nothing is said: each cell that needs it fails with the real message.
    """
    tiny = tiny_pipeline(asked)
    use_as_shipped(tiny.extensions)
    try:
        first_unpack(tiny.device)
    except Exception:
        traceback.print_exc()
    return Done()


def compile_unquantized(asked: CompileJob, desk: Desk) -> Moved:
    """Return how far compiling alone moves the unquantized model."""
    bench = _bench(asked.place, REFERENCE, desk)
    try:
        return Moved(_COMPILED[asked.path](bench, paths_diffusers.unquantized(bench)))
    except Exception:
        traceback.print_exc()  # the cells fail in the same way, and say how
        return Moved(0.0)


def _bench(place: Place, weights: str, desk: Desk, reference_moved: float = 0.0) -> Bench:
    return Bench(tiny_pipeline(place), weights, desk.folder, desk.stage, reference_moved)


def _outcome(error: Exception) -> tuple[str, str]:
    message = with_kind(error)
    if isinstance(error, UnsupportedError):
        return UNSUPPORTED, message
    if _lacks_compiler(error):
        return UNSUPPORTED, f"torch.compile on a CPU needs a C++ compiler ({message})"
    return FAILS, message


def _lacks_compiler(error: BaseException | None) -> bool:
    """Whether ``torch.compile`` found no C++ compiler: nobody's library can compile without."""
    while error is not None:
        if type(error).__name__ == "InvalidCxxCompiler":
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__
    return False


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether an error comes from the doctor's own code, not from what it examines."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    home = Path(__file__).parent
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == home
