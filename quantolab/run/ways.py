"""How a recipe gets onto an accelerator: all of it at once, or offloaded by Diffusers.

What is needed is chosen from a plan before anything starts. A VAE that decodes in tiles changes
pictures, so all recipes of a comparison have it or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ArgumentError, one_of
from ..planning.needs import CONTEXT_BYTES, Needs
from ..units import format_bytes, format_list

RESIDENT = "none"
OFFLOADS = (RESIDENT, "model", "group", "sequential")
"""From the mildest on: each takes less memory and more time than the one before."""


@dataclass(frozen=True)
class Way:
    """How one recipe runs."""

    offload: str = RESIDENT
    tiled: bool = False
    ahead: bool = False
    """By groups: whether there is room for the next block while one computes."""


def check_offload(offload: str | None, device: str) -> str | None:
    """Return the way that is asked for; None leaves it to the plan.

    Raises
    ------
    ArgumentError
        If there is no such way, or a device that nothing can be offloaded from.
    """
    if offload is None:
        return None
    one_of("offload", offload, OFFLOADS)
    if offload != RESIDENT and device.partition(":")[0] in ("cpu", "mps"):
        raise ArgumentError(
            f"offload {offload!r} is for devices with a memory of their own (cuda, xpu), and "
            f"{device!r} has none: it shares the processor's"
        )
    return offload


def milder(way: Way) -> Way | None:
    """Return what takes less memory; None after the last."""
    later = OFFLOADS[OFFLOADS.index(way.offload) + 1 :]
    return Way(later[0], way.tiled) if later else None


def with_room(way: Way, need: Needs | None, free: int | None) -> Way:
    """Return a way that says whether a block more has room than the plan counts.

    The next block is no larger than all that groups take, so twice that is enough.
    """
    if way.offload != "group" or free is None or need is None or need.group is None:
        return way
    return dataclasses.replace(way, ahead=2 * need.group - CONTEXT_BYTES <= free)


def chosen_ways(needs: Mapping[str, Needs | None], free: int | None) -> dict[str, Way]:
    """Return the mildest way of each recipe that fits, by label.

    Parameters
    ----------
    needs : mapping of str to Needs or None
        What each takes; None where that isn't known.
    free : int or None
        What is free on the device; None where that isn't known, or on a CPU.
    """
    if free is None:
        return {label: Way() for label in needs}
    tiled = any(
        _tiles_help(need) and (need.resident or 0) > free for need in needs.values() if need
    )
    return {label: Way(_mildest(need, free, tiled), tiled) for label, need in needs.items()}


def _tiles_help(need: Needs) -> bool:
    return (need.tiled or 0) < (need.resident or 0)  # not where a picture is one tile


def _mildest(need: Needs | None, free: int, tiled: bool) -> str:
    if need is None or need.resident is None:
        return RESIDENT
    resident = need.tiled if tiled else need.resident
    figures = (resident, need.model, need.group, need.sequential)
    for offload, figure in zip(OFFLOADS, figures, strict=True):
        if figure is None or figure <= free:
            return offload
    return OFFLOADS[-1]


def way_words(
    ways: Mapping[str, Way], needs: Mapping[str, Needs | None], free: int | None
) -> str | None:
    """Return in one line how recipes run that don't fit as they are; None if all do."""
    by_way: dict[str, list[str]] = {}
    for label, way in ways.items():
        if way.offload != RESIDENT:
            by_way.setdefault(way.offload, []).append(label)
    said = [f"{format_list(labels)} by --offload {way}" for way, labels in by_way.items()]
    if any(way.tiled for way in ways.values()):
        said.append("every VAE decodes in tiles")
    if not said:
        return None
    most = max((n.resident for n in needs.values() if n and n.resident), default=None)
    why = f": {format_bytes(most)} would be needed, {format_bytes(free)} are free" if most else ""
    return f"{format_list(said)}{why}"
