"""Which word each group of layers gets: least damage within a number of bytes, by whole numbers.

Plain arithmetic over a table of sensitivities. Errors of layers are taken for independent of each
other and of rounding, so squares add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..weights import REFERENCE

_SURE = 2.0  # times the floor: errors above it are hardly made of rounding
_SECONDS = 20.0  # the solver's, which needs a hundredth of that; what it has by then is good

Words = dict[tuple[str, str], str]
"""The word of each group by (component, path)."""


@dataclass(frozen=True)
class Option:
    """One word for one group of layers."""

    word: str
    bytes: int
    """Of the weights of the whole group."""
    weight_error: float
    output_error: float
    call_error: float = 0.0
    """What it does to a single call, where `output_error` is of pictures and only told."""


@dataclass(frozen=True)
class Group:
    """Layers that get the same word."""

    component: str
    path: str
    options: tuple[Option, ...]
    """Of the words that were measured, and of ``"none"``."""

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return self.component, self.path

    def option(self, word: str) -> Option:
        """Return the option of a word, that of ``"none"`` where there is none."""
        found = {option.word: option for option in self.options}
        return found.get(word, found[REFERENCE])


def damages(group: Group, floor: float) -> dict[str, float]:
    """Return the squared error that each word adds to the output, by what is known best.

    Errors well above the floor are taken as they are, less the floor. Those near it are mostly
    rounding, which quantizing one more layer doesn't add to: they are told from a coarser word of
    the same group, by the squares of the errors of the weights, and are never more than measured.

    Parameters
    ----------
    group : Group
        Its options.
    floor : float
        The output's error by rounding alone.
    """
    measured = [option for option in group.options if option.word != REFERENCE]
    sure = [o for o in measured if o.output_error > _SURE * floor and o.weight_error > 0]
    best = min(sure, key=lambda option: option.output_error, default=None)
    found = {REFERENCE: 0.0}
    for option in measured:
        own = max(0.0, option.output_error**2 - floor**2)
        if option.output_error > _SURE * floor:
            found[option.word] = own
        elif best is not None and math.isfinite(best.output_error):
            share = (option.weight_error / best.weight_error) ** 2
            found[option.word] = min(share * (best.output_error**2 - floor**2), floor**2)
        else:  # nothing is known but that it is little: the finer weights are the better ones
            found[option.word] = (floor * min(1.0, option.weight_error)) ** 2
    return found


def choose(groups: Sequence[Group], budget: int, floor: float) -> Words | None:
    """Return the words with the least damage together that fit; None if nothing fits.

    Parameters
    ----------
    groups : sequence of Group
        All of them.
    budget : int
        Bytes that all their weights may take.
    floor : float
        The output's error by rounding alone.
    """
    return choose_by(groups, budget, [damages(group, floor) for group in groups])


def choose_by(
    groups: Sequence[Group], budget: int, harm: Sequence[Mapping[str, float]]
) -> Words | None:
    """Return the words that fit with the least harm together; None if nothing fits.

    Parameters
    ----------
    groups : sequence of Group
        All of them.
    budget : int
        Bytes that all their weights may take.
    harm : sequence of mapping of str to float
        Of each group, what each of its words does.
    """
    options = [(at, option) for at, group in enumerate(groups) for option in group.options]
    costs = _finite([harm[at][option.word] for at, option in options])
    room = budget
    for _ in range(3):  # whole bytes: the solver is exact to a millionth only
        chosen = _solved([at for at, _ in options], [o.bytes for _, o in options], costs, room)
        if chosen is None:
            return None
        over = sum(options[i][1].bytes for i in chosen) - budget
        if over <= 0:
            return {groups[options[i][0]].key: options[i][1].word for i in chosen}
        room -= 2 * over
    return None


def _finite(costs: list[float]) -> list[float]:
    """Return costs of which the infinite are far above all others, the largest being 1."""
    worst = max((cost for cost in costs if math.isfinite(cost)), default=0.0) or 1.0
    costs = [cost if math.isfinite(cost) else 1e3 * worst for cost in costs]
    return [cost / max(costs) for cost in costs] if max(costs) > 0 else costs


def _solved(owners: list[int], sizes: list[int], costs: list[float], room: int) -> list[int] | None:
    """Return which options to take: one of each owner, at the least cost, of at most some size."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count, unit = len(owners), max(sizes)
    one_each = csr_array((np.ones(count), (owners, range(count))))
    bytes_ = np.array(sizes, dtype=float)[None, :] / unit
    # Of equally good choices the smallest: a hair for each byte.
    weighed = np.array(costs) + 1e-9 * bytes_[0] / count
    found = milp(
        weighed,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(bytes_, -math.inf, room / unit),
        ],
        options={"time_limit": _SECONDS, "mip_rel_gap": 1e-6},
    )
    return None if found.x is None else [i for i, value in enumerate(found.x) if value > 0.5]


def keep_list(
    groups: Sequence[Group], word: str, budget: int, floor: float, *, by_calls: bool = False
) -> Words | None:
    """Return one word for all but those that are worth most to keep; None if nothing fits.

    Groups are kept in the order of damage removed for each byte that this costs; with `by_calls`,
    of the damage that was seen in single calls, rounding included.
    """
    found = {group.key: group.option(word).word for group in groups}
    spare = budget - sum(group.option(word).bytes for group in groups)
    if spare < 0:
        return None

    def worth(group: Group) -> float:
        own = group.option(word)
        harm = own.call_error**2 if by_calls else max(0.0, own.output_error**2 - floor**2)
        return harm / max(_cost(group, word), 1)

    for group in sorted(groups, key=worth, reverse=True):
        if _cost(group, word) <= spare:
            found[group.key] = REFERENCE
            spare -= max(_cost(group, word), 0)
    return found


def _cost(group: Group, word: str) -> int:
    return group.option(REFERENCE).bytes - group.option(word).bytes


def size_of(groups: Sequence[Group], words: Words) -> int:
    """Return the bytes of all groups' weights under some words."""
    return sum(group.option(words[group.key]).bytes for group in groups)


def predicted_error(groups: Sequence[Group], words: Words, floor: float) -> float:
    """Return the error of the output that words make together, rounding included."""
    total = sum(damages(group, floor)[words[group.key]] for group in groups)
    return math.sqrt(total + floor**2) if total else 0.0
