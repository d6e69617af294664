"""What can be run and yet isn't what somebody wants: said before the run, in sentences."""

from __future__ import annotations

from ..demo import knowing
from ..models.source import DEMO
from .asked import Request


def doubts(request: Request) -> tuple[str, ...]:
    """Return what to think of before a new run of this is begun; empty if all is well."""
    said: list[str] = []
    if request.reference is None and not any(r.is_reference for r in request.recipes):
        said.append(
            "Nothing here is unquantized, so there will be no PSNR and no speed against it: "
            "add none to the weights, or name another run as reference."
        )
    workload = request.workload
    if workload.model == DEMO:
        said += knowing.doubts(workload.prompts, workload.size)
    return tuple(said)
