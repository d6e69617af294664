"""Versions found here against those that quantolab allows and those it was tested with."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata

TESTED = {
    "python": ("3.11",),
    "torch": ("2.13.0",),
    "optimum-quanto": ("0.2.7",),
    "diffusers": ("0.42.1",),
    "transformers": ("5.23.0",),
    "accelerate": ("1.15.0",),
    "safetensors": ("0.8.0",),
}
"""The versions that the tests and the path matrix in the README ran with: the only place that
says so."""

TESTED_AS, UNTESTED, OUTSIDE, MISSING = "tested", "not tested", "outside the range", "missing"


@dataclass(frozen=True)
class Version:
    """One package, as found."""

    name: str
    found: str | None
    tested: tuple[str, ...]
    allowed: str
    """Range, as the package's metadata states it; empty if there is none."""
    state: str
    """`TESTED_AS`, `UNTESTED` (allowed, but another one was tested), `OUTSIDE` or `MISSING`."""

    @property
    def ok(self) -> bool:
        """Whether quantolab may run with it."""
        return self.state in (TESTED_AS, UNTESTED)


def check_versions() -> tuple[Version, ...]:
    """Return Python and the packages that decide what works, each with its verdict."""
    python, ranges = _ranges()
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in TESTED:
        if name != "python":
            found[name] = _installed(name)
    return tuple(
        judge_version(name, found[name], ranges.get(name, python if name == "python" else ""))
        for name in TESTED
    )


def judge_version(name: str, found: str | None, allowed: str) -> Version:
    """Return one verdict.

    Parameters
    ----------
    name : str
        A key of `TESTED`.
    found : str or None
        The installed version; None if there is none.
    allowed : str
        A range such as ``>=2.6,<2.14``.
    """
    from packaging.specifiers import SpecifierSet

    if found is None:
        state = MISSING
    elif allowed and not SpecifierSet(allowed).contains(found, prereleases=True):
        state = OUTSIDE
    else:
        bare = found.partition("+")[0]  # 2.13.0+cpu is 2.13.0
        same = any(bare == t or bare.startswith(f"{t}.") for t in TESTED[name])
        state = TESTED_AS if same else UNTESTED
    return Version(name, found, TESTED[name], allowed, state)


def _ranges() -> tuple[str, dict[str, str]]:
    """Return the range of Python and of each package, from quantolab's own metadata."""
    try:
        own = metadata.metadata("quantolab")
    except metadata.PackageNotFoundError:
        return "", {}  # used from a source folder
    ranges = {}
    for line in own.get_all("Requires-Dist") or ():
        match = re.match(r"\s*([\w.-]+)\s*\(?([^;)]*)", line)
        if match and "extra" not in line:
            parts = sorted((p.strip() for p in match[2].split(",") if p.strip()), reverse=True)
            ranges[match[1].lower()] = ",".join(parts)
    return own.get("Requires-Python") or "", ranges


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
