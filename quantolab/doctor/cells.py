"""What a child process does for the path matrix: one phase of one cell, and what comes before."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from ..backends.quanto.shipped import first_unpack, use_as_shipped
from ..errors import UnsupportedError
from . import ours, plain
from .bench import Bench
from .judging import FAILS, UNSUPPORTED, Finding
from .lab import lab_of

PHASES = {"diffusers": plain.PHASES, "quantolab": ours.PHASES}
_COMPILED = {
    "compile full graph": plain.compiled_whole,
    "compile of repeated blocks": plain.compiled_blocks,
}


def run_phase(request: dict, emit) -> dict:
    """Run one phase of a cell. A job.

    Returns
    -------
    dict
        ``{"outcome": ..., "reason": ...}``; outcome is None where the cell goes on.
    """
    phase = PHASES[request["via"]][request["path"]][request["phase"]]
    bench = _bench(request, emit)
    if request["via"] == "diffusers":
        use_as_shipped(bench.lab.extensions)
    try:
        finding = phase(bench)
    except Exception as error:
        if _raised_here(error.__traceback__):
            raise  # a mistake of ours is no outcome
        traceback.print_exc()  # into the job's log
        finding = Finding(*_outcome(error))
    if finding is None:
        return {"outcome": None, "reason": ""}
    return {"outcome": finding.outcome, "reason": finding.reason}


def build_extension(request: dict, emit) -> dict:
    """Build Quanto's extension as plain Quanto does at its first int4 forward. A job.

    Where that fails nothing is said: each cell that needs it fails with the real message.
    """
    lab = lab_of(request)
    use_as_shipped(lab.extensions)
    try:
        first_unpack(lab.device)
    except Exception:
        traceback.print_exc()
    return {}


def compile_unquantized(request: dict, emit) -> dict:
    """Return how far compiling alone moves the unquantized model. A job."""
    bench = _bench(request, emit)
    try:
        return {"moved": _COMPILED[request["path"]](bench, plain.unquantized(bench))}
    except Exception:
        traceback.print_exc()  # the cells fail in the same way, and say how
        return {"moved": 0.0}


def _bench(request: dict, emit) -> Bench:
    return Bench(
        lab_of(request),
        request["weights"],
        Path(request["folder"]),
        lambda stage: emit({"event": "stage", "stage": stage}),
        request.get("reference_moved", 0.0),
    )


def _outcome(error: Exception) -> tuple[str, str]:
    text = (str(error).strip().splitlines() or [""])[0]
    message = f"{type(error).__name__}: {text}".rstrip(": ")
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
