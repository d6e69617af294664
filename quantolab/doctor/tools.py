"""Compilers that other libraries call: whether they are here, and how to get them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

_SECONDS = 5.0


@dataclass(frozen=True)
class Tool:
    """One program."""

    name: str
    version: str | None
    """First line of what it says of itself, shortened; None if it isn't on the PATH."""
    use: str
    """Who calls it, and when."""
    how: str
    """How to get it."""


def check_tools() -> tuple[Tool, ...]:
    """Return C++ compiler, ninja and CUDA compiler, present or not."""
    cxx = os.environ.get("CXX") or next(
        (name for name in ("g++", "clang++", "cl") if shutil.which(name)), "g++"
    )
    return (
        Tool(
            cxx,
            _version(cxx, "--version"),
            "torch.compile on a CPU; plain Quanto",
            "apt install g++, or conda install gxx",
        ),
        Tool(
            "ninja",
            _version("ninja", "--version"),
            "plain Quanto",
            "pip install ninja",
        ),
        Tool(
            "nvcc",
            _version("nvcc", "--version"),
            "plain Quanto on CUDA (AWQ, Marlin)",
            "the CUDA toolkit that torch names",
        ),
    )


def _version(program: str, flag: str) -> str | None:
    """Return the version in what a program says of itself; its last number is it."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        said = subprocess.run(
            [path, flag], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "there, but it doesn't answer"
    lines = said.stdout.strip().splitlines()
    if said.returncode or not lines:
        return "there, but it doesn't answer"
    line = next((li for li in lines if "release" in li), lines[0])
    words = [w.strip(",()V") for w in line.split() if any(sign.isdigit() for sign in w)]
    return words[-1] if words else line[:40]
