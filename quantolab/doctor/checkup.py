"""``quantolab doctor``: what this machine can do, found out in seconds, said in plain text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field

from .. import __version__
from ..errors import JobFailed, QuantolabError
from ..files.whole import scratch_folder
from ..processes.children import Children
from ..text_tables import GAP, text_columns
from ..units import ABSENT, format_bytes, format_seconds
from .constants import ROUNDS, ROWS, WIDTH
from .jobs import ExamineJob, Extension, Hub, Machine
from .kinds import EXAMINE
from .tools import Tool, check_tools
from .versions import Version, check_versions

_WIDTH = 100
_BUSY = 1.5  # processes that want to run, a core; the examination itself makes up to one
_IMPORTS = ("torch", "transformers", "diffusers", "optimum.quanto")


@dataclass(frozen=True)
class Checkup:
    """What was found."""

    versions: tuple[Version, ...]
    tools: tuple[Tool, ...]
    machine: Machine | None
    """What `machine.examine` returns; None if its process couldn't run."""
    broken: tuple[str, ...] = field(default=())
    """What is wrong, a sentence each; empty on a healthy machine."""


def check_up(device: str = "auto") -> Checkup:
    """Examine this machine.

    Parameters
    ----------
    device : str
        The device whose kernels are timed.
    """
    versions = check_versions()
    broken = [_version_fault(v) for v in versions if not v.ok]
    machine = None
    try:
        machine = _examine(device)
    except JobFailed as error:
        faults = _import_faults()
        broken += faults or [f"examining the machine failed: {error}"]
    else:
        broken += [f"{n} can't be imported: {why}" for n, why in machine.imports.items()]
        broken += [
            f"{row.weights} computing in {row.dtype} fails: {row.error}"
            for row in machine.speeds
            if row.error
        ]
    return Checkup(versions, check_tools(), machine, tuple(broken))


def speed_table(checkup: Checkup):
    """Return the measured dtypes as a DataFrame, one row a compute and weights dtype."""
    import pandas as pd

    rows = [dataclasses.asdict(row) for row in checkup.machine.speeds] if checkup.machine else []
    names = ["dtype", "weights", "kernel", "seconds", "against", "error"]
    frame = pd.DataFrame(rows, columns=names)
    frame.insert(0, "device", checkup.machine.device if checkup.machine else "")
    return frame


def text_checkup(checkup: Checkup) -> str:
    """Return a checkup as aligned text, at most 100 columns wide."""
    parts = [f"quantolab {__version__}", _versions(checkup.versions)]
    if checkup.machine is not None:
        parts.append(_devices(checkup.machine))
    parts.append(_tools(checkup))
    if checkup.machine is not None:
        parts += [_speeds(checkup.machine), _hub(checkup.machine.hub)]
    parts.append(_summary(checkup))
    return "\n\n".join(parts)


def _examine(device: str) -> Machine:
    with (
        scratch_folder("doctor") as folder,
        Children(fork=False) as children,
    ):
        try:
            return children.run(EXAMINE, ExamineJob(device), folder=folder)
        except JobFailed:
            raise
        except QuantolabError as error:
            raise JobFailed(str(error)) from error


def _import_faults() -> list[str]:
    """Import each library in a process of its own and return what the failing ones say."""
    faults = []
    for name in _IMPORTS:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            faults.append(f"{name} can't be imported: {last}")
    return faults


def _version_fault(version: Version) -> str:
    if version.found is None:
        return f"{version.name} is not installed (pip install '{version.name}{version.allowed}')"
    if version.breaks:
        return (
            f"{version.name} {version.found} is known to break {version.breaks} "
            f"(pip install '{version.name}{version.allowed}')"
        )
    return (
        f"{version.name} {version.found} is outside the range {version.allowed} "
        f"(pip install '{version.name}{version.allowed}')"
    )


def _versions(versions: tuple[Version, ...]) -> str:
    rows = [("", "found", "tested with", "allowed", "")]
    for v in versions:
        tested = ", ".join(v.tried)
        rows.append((v.name, v.found or ABSENT, tested, v.allowed, v.state))
    return "Versions\n" + _aligned(rows)


def _devices(machine: Machine) -> str:
    rows = []
    for d in machine.devices:
        memory = f"{format_bytes(d.free_bytes)} free of {format_bytes(d.memory_bytes)}"
        detail = f"{d.detail}, {machine.threads} threads" if d.device == "cpu" else d.detail
        used = "auto" if d.device.split(":")[0] == machine.device.split(":")[0] else ""
        rows.append((d.device, d.name, memory, detail, used))
    return "Devices\n" + _aligned(rows)


def _tools(checkup: Checkup) -> str:
    rows = []
    for tool in checkup.tools:
        state = tool.version or "missing"
        rows.append((tool.name, state, tool.use, "" if tool.version else tool.how))
    lines = ["Compilers (quantolab itself needs none; torch.compile on a CPU does)", _aligned(rows)]
    for state in checkup.machine.extensions if checkup.machine else ():
        lines.append(f"  {state.name}: {_extension(state)}")
    return "\n".join(lines)


def _extension(state: Extension) -> str:
    if state.lock:
        return (
            "a lock lies in its folder. Unless something builds it right now, plain Diffusers\n"
            f"    waits for it without end; then remove\n    {state.lock}"
        )
    if state.built:
        return "built; plain Diffusers uses it, quantolab doesn't need it"
    when = "fused CUDA kernel" if state.name == "quanto_cuda" else "int4/int2 forward"
    return f"not built; plain Diffusers does so at the first {when}, in a minute"


def _speeds(machine: Machine) -> str:
    rows = [("computes in", "weights", "kernel", "a call", "against unquantized")]
    last = None
    for row in machine.speeds:
        dtype = "" if row.dtype == last else row.dtype
        last = row.dtype
        seconds = row.error or format_seconds(row.seconds)
        rows.append((dtype, row.weights, row.kernel, seconds, row.against or ""))
    head = (
        f"Weights dtypes on {machine.device}: one Linear layer of {WIDTH} to {WIDTH}, {ROWS} "
        f"rows, {machine.threads} threads,\nmedian of {ROUNDS} alternating calls "
        "(a whole model differs: more layers, other shapes)"
    )
    if (machine.busy or 0) > _BUSY:
        head += "\nThe machine is busy with other work: these times are rough."
    return f"{head}\n{_aligned(rows)}"


def _hub(hub: Hub) -> str:
    state = "there" if hub.there else "not there yet"
    offline = "offline (HF_HUB_OFFLINE is set)" if hub.offline else "downloads allowed"
    return f"Models from the Hub\n  cache {hub.cache} ({state}), {offline}"


def _summary(checkup: Checkup) -> str:
    if not checkup.broken:
        return "Nothing is broken."
    return "\n".join(["Broken:", *(f"  {fault}" for fault in checkup.broken)])


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Return rows as indented columns; what goes over the width is cut with a sign."""
    lines = text_columns(rows, "l" * len(rows[0]), width=_WIDTH - len(GAP))
    return "\n".join(GAP + line for line in lines)
