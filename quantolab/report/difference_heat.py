"""A map of differences as a picture: colours, and the scale that says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

from ..units import format_digits

COLOUR_MAP = "inferno"
"""Even in brightness, so it reads in grey and to the colour-blind; black is no difference."""

# Few, so that maps of different pairs often share a scale.
LEVEL_STEPS = (8, 16, 32, 64, 128, 255)
ERROR_STEPS = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Ends that a scale of FLIP's errors can have."""
_LEFT_OUT = 0.01  # share of pixels that may lie above the scale: one hard edge hides no haze


@dataclass(frozen=True)
class HeatScale:
    """What the brightest colour stands for."""

    maximum: float
    """8-bit levels, or an error from 0 to 1."""
    exceeded: bool
    """Whether some pixels differ by more, and are drawn in the brightest colour too."""

    @property
    def ticks(self) -> tuple[str, ...]:
        """What stands at the start, the middle and the end of the colour bar."""
        middle, end = format_digits(self.maximum / 2, 6), format_digits(self.maximum, 6)
        return "0", middle, f"{end} or more" if self.exceeded else end


def heat_scale(levels: np.ndarray, steps: Sequence[float] = LEVEL_STEPS) -> HeatScale:
    """Return the smallest of a few round scales that hold 99 % of the pixels.

    Parameters
    ----------
    levels : numpy.ndarray
        Differences in 8-bit levels, from `quantolab.measure.quality.difference_map`, or others.
    steps : sequence of float
        Ends that the scale can have; nothing lies beyond the last.

    Examples
    --------
    >>> heat_scale(np.array([[0, 3], [12, 9]]))
    HeatScale(maximum=16, exceeded=False)
    """
    most = _LEFT_OUT * levels.size
    holding = (step for step in steps if np.count_nonzero(levels > step) <= most)
    maximum = next(holding, steps[-1])
    return HeatScale(maximum, exceeded=bool(levels.max() > maximum))


def heat_picture(levels: np.ndarray, scale: HeatScale) -> Image.Image:
    """Return differences of shape (height, width) as a picture of the same size."""
    shares = levels / scale.maximum  # above 1 the colour map goes on with its last colour
    return Image.fromarray(matplotlib.colormaps[COLOUR_MAP](shares, bytes=True)[..., :3])


def heat_colours(count: int = 17) -> tuple[str, ...]:
    """Return evenly spaced colours of the scale as ``#rrggbb``, from no difference upwards."""
    colours = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, count), bytes=True)
    return tuple("#{:02x}{:02x}{:02x}".format(*colour[:3]) for colour in colours)
