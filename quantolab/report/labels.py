"""Where labels go so that they can be read: plain geometry, in pixels, y upwards."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spot:
    """What a label belongs to: a round marker."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Box:
    """An upright rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area shared with another box."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(across, 0.0) * max(up, 0.0)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Return the point of the box that is nearest to a point."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def distance(self, x: float, y: float) -> float:
        """Return how far a point is from the box; 0 inside."""
        near_x, near_y = self.nearest(x, y)
        return math.hypot(near_x - x, near_y - y)

    def grown(self, by: float) -> Box:
        """Return the box with a margin around it."""
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


# Directions in the order in which people look for a label, eighths of a turn from "right".
_DIRECTIONS = (0, 1, 7, 2, 6, 4, 3, 5)
_DISTANCES = (3, 10, 20, 32, 46, 62, 80, 100)  # steps between marker and label
_SWEEPS = 4


def place_labels(
    spots: Sequence[Spot],
    sizes: Sequence[tuple[float, float]],
    *,
    frame: Box,
    upright: Sequence[float] = (),
    step: float = 1.0,
) -> tuple[Box, ...]:
    """Return a box for each label, near its spot and clear of the others as far as possible.

    Each label tries eight directions at eight distances and takes the place that costs least;
    covering another label costs most, then leaving the frame, leaders through labels, covering a
    marker, crossing an upright line; of equals the nearest is taken. After the first round every
    label is placed again among the others, a few times. Exhaustive search would do better for
    dozens of points; for ten this is enough, quick, and always gives the same answer.

    Parameters
    ----------
    spots : sequence of Spot
        Markers, all of them obstacles.
    sizes : sequence of (width, height)
        Of the labels, in the same order.
    frame : Box
        Where labels should stay.
    upright : sequence of float
        Places of vertical lines that labels shouldn't cross.
    step : float
        Pixels a point (1/72 inch), so that distances look the same at every resolution.

    Examples
    --------
    >>> place_labels([Spot(50, 50, 5)], [(20, 10)], frame=Box(0, 0, 100, 100))
    (Box(left=58.0, bottom=45.0, right=78.0, top=55.0),)
    """
    choices = [_choices(spot, size, step) for spot, size in zip(spots, sizes, strict=True)]
    placed: list[Box | None] = [None] * len(spots)
    for _ in range(_SWEEPS):
        before = list(placed)
        for i, boxes in enumerate(choices):
            others = [(spots[k], box) for k, box in enumerate(placed) if box is not None and k != i]
            cost = functools.partial(
                _cost, spots[i],
                others=others, spots=spots, frame=frame, upright=upright, step=step,
            )  # fmt: skip
            placed[i] = _cheapest(boxes, cost)
        if placed == before:
            break
    return tuple(box for box in placed if box is not None)


def _cheapest(boxes: Sequence[Box], cost: Callable[[Box], float]) -> Box:
    """Return the first of the boxes that cost least; none after a free one is looked at."""
    best, least = boxes[0], math.inf
    for box in boxes:
        asked = cost(box)
        if asked < least:
            best, least = box, asked
        if least == 0:
            break
    return best


def _choices(spot: Spot, size: tuple[float, float], step: float) -> list[Box]:
    """Every box to try, near ones first; each touches its circle around the spot from outside."""
    width, height = size
    boxes = []
    for distance in _DISTANCES:
        reach = spot.radius + distance * step
        for eighth in _DIRECTIONS:
            across = round(math.cos(eighth * math.pi / 4), 9)
            up = round(math.sin(eighth * math.pi / 4), 9)
            left = spot.x + reach * across - width * (1 - _sign(across)) / 2
            bottom = spot.y + reach * up - height * (1 - _sign(up)) / 2
            boxes.append(Box(left, bottom, left + width, bottom + height))
    return boxes


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _cost(
    spot: Spot,
    box: Box,
    others: Sequence[tuple[Spot, Box]],
    spots: Sequence[Spot],
    frame: Box,
    upright: Sequence[float],
    step: float,
) -> float:
    """Return how bad a place is; 0 if nothing is wrong with it."""
    roomy = box.grown(2 * step)
    covered = sum(roomy.overlap(other) > 0 for _, other in others)
    outside = box.area - box.overlap(frame) > 0.5
    through = sum(
        leader_meets(spot, box, other) or leader_meets(owner, other, box) for owner, other in others
    )
    markers = sum(box.distance(other.x, other.y) < other.radius + step for other in spots)
    crossed = sum(box.left - 2 * step < x < box.right + 2 * step for x in upright)
    return 1000 * covered + 500 * outside + 300 * through + 200 * markers + 100 * crossed


def leader_meets(spot: Spot, box: Box, other: Box) -> bool:
    """Return whether the straight line from a spot to its label's box runs through another box."""
    end_x, end_y = box.nearest(spot.x, spot.y)
    steps = 24
    return any(
        other.distance(
            spot.x + (end_x - spot.x) * k / steps, spot.y + (end_y - spot.y) * k / steps
        ) == 0
        for k in range(steps + 1)
    )  # fmt: skip
