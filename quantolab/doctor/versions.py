"""Versions found here against those that quantolab allows and those it was tested with."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata

TESTED = {
    "python": ("3.11",),
    "torch": ("2.13.0", "2.15.0"),
    "optimum-quanto": ("0.2.7",),
    "diffusers": ("0.42.1",),
    "transformers": ("5.24.0",),
    "accelerate": ("1.15.0",),
    "safetensors": ("0.8.0",),
    "numpy": ("2.4.6",),
    "pandas": ("3.1.1",),
    "ipywidgets": ("8.1.9",),
}
"""The versions that the quick tests ran with, the newest last: the only place that says so. The
path matrix in the README is of torch 2.13.0."""

TESTED_AS, NEWER, UNTESTED = "tested", "newer than tested", "not tested"
OUTSIDE, MISSING = "outside the range", "missing"


@dataclass(frozen=True)
class Version:
    """One package, as found."""

    name: str
    found: str | None
    tested: tuple[str, ...]
    allowed: str
    """Range, as the package's metadata states it; empty if there is none."""
    state: str
    """`TESTED_AS`, `NEWER` (than any tested), `UNTESTED`, `OUTSIDE` or `MISSING`."""

    @property
    def ok(self) -> bool:
        """Whether quantolab may run with it."""
        return self.state in (TESTED_AS, NEWER, UNTESTED)


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
        A range such as ``>=2.6,<3``.
    """
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version as Release

    if found is None:
        state = MISSING
    elif allowed and not SpecifierSet(allowed).contains(found, prereleases=True):
        state = OUTSIDE
    else:
        bare = found.partition("+")[0]  # 2.13.0+cpu is 2.13.0
        same = any(bare == t or bare.startswith(f"{t}.") for t in TESTED[name])
        newer = Release(bare) > max(map(Release, TESTED[name]))
        state = TESTED_AS if same else NEWER if newer else UNTESTED
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
