"""Versions found here against those that quantolab allows and those it was tried with."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata

TRIED = {
    "python": ("3.11",),
    "torch": ("2.6.0", "2.13.0", "2.15.0"),
    "optimum-quanto": ("0.2.7",),
    "diffusers": ("0.42.0", "0.42.1"),
    "transformers": ("5.18.0", "5.24.0"),
    "accelerate": ("1.2.0", "1.15.0"),
    "huggingface-hub": ("2.4.0",),
    "safetensors": ("0.8.0",),
    "numpy": ("2.0.0", "2.4.6"),
    "pandas": ("2.2.2", "3.1.1"),
    "ipywidgets": ("8.1.0", "8.1.9"),
}
"""The versions that the quick tests ran with, the lowest and the newest each all together: the only
place that says so. The path matrix in the README is of torch 2.13.0."""


@dataclass(frozen=True)
class Fault:
    """What is known not to work with some versions of a package."""

    name: str
    versions: str
    """A range such as ``<2``."""
    breaks: str
    """Which thing does, and why."""


KNOWN = (
    Fault("numpy", "<2", "results.parquet: pyarrow 26 can't be imported with it"),
    Fault("pandas", "<2.2.2", "every table: it isn't built for numpy 2"),
    Fault("transformers", "<5.18", "models of the Hub: it needs a huggingface-hub below 2"),
)
"""What was seen to break. Most of it is outside the allowed range for that reason."""

TESTED, OLDER, BETWEEN = "tested", "older than tried", "between tested ones"
NEWER, BROKEN = "newer than tested", "known broken"
OUTSIDE, MISSING = "outside the range", "missing"


@dataclass(frozen=True)
class Version:
    """One package, as found."""

    name: str
    found: str | None
    tried: tuple[str, ...]
    allowed: str
    """Range, as the package's metadata states it; empty if there is none."""
    state: str
    """`TESTED`, `OLDER` (than any tried), `BETWEEN`, `NEWER` (than any), `BROKEN`, `OUTSIDE` or
    `MISSING`."""
    breaks: str = ""
    """Which thing is known to break, if one is."""

    @property
    def ok(self) -> bool:
        """Whether quantolab may run with it."""
        return self.state in (TESTED, OLDER, BETWEEN, NEWER)


def check_versions() -> tuple[Version, ...]:
    """Return Python and the packages that decide what works, each with its verdict."""
    python, ranges = _ranges()
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in TRIED:
        if name != "python":
            found[name] = _installed(name)
    return tuple(
        judge_version(name, found[name], ranges.get(name, python if name == "python" else ""))
        for name in TRIED
    )


def judge_version(
    name: str, found: str | None, allowed: str, known: tuple[Fault, ...] = KNOWN
) -> Version:
    """Return one verdict.

    Parameters
    ----------
    name : str
        A key of `TRIED`.
    found : str or None
        The installed version; None if there is none.
    allowed : str
        A range such as ``>=2.6,<3``.
    known : tuple of Fault
        What is known to break.
    """
    if found is None:
        return Version(name, found, TRIED[name], allowed, MISSING)
    faults = [f.breaks for f in known if f.name == name and _is_in(found, f.versions)]
    if faults:
        state = BROKEN
    elif allowed and not _is_in(found, allowed):
        state = OUTSIDE
    else:
        state = _against(found.partition("+")[0], TRIED[name])  # 2.13.0+cpu is 2.13.0
    return Version(name, found, TRIED[name], allowed, state, "; ".join(faults))


def _against(found: str, tried: tuple[str, ...]) -> str:
    from packaging.version import Version as Release

    if any(found == t or found.startswith(f"{t}.") for t in tried):
        return TESTED
    releases = [Release(t) for t in tried]
    if Release(found) < min(releases):
        return OLDER
    return NEWER if Release(found) > max(releases) else BETWEEN


def _is_in(found: str, versions: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(versions).contains(found, prereleases=True)


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
