"""What the colours of a difference map stand for."""

import numpy as np
import pytest

from quantolab.report.difference_heat import HeatScale, heat_colours, heat_picture, heat_scale


def test_the_scale_holds_99_of_100_pixels():
    levels = np.zeros((10, 20), dtype=np.uint8)
    assert heat_scale(levels) == HeatScale(8, exceeded=False)
    levels.flat[:2] = 200  # one in a hundred
    assert heat_scale(levels) == HeatScale(8, exceeded=True)
    levels.flat[2] = 9
    assert heat_scale(levels) == HeatScale(16, exceeded=True)
    assert heat_scale(np.full((4, 4), 255, dtype=np.uint8)) == HeatScale(255, exceeded=False)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (HeatScale(16, exceeded=False), ("0", "8", "16")),
        (HeatScale(32, exceeded=True), ("0", "16", "32 or more")),
        (HeatScale(255, exceeded=False), ("0", "127.5", "255")),
    ],
)
def test_ticks(scale, ticks):
    assert scale.ticks == ticks


def test_colours_run_from_the_first_to_the_last_of_the_map():
    levels = np.array([[0, 8, 16, 200]], dtype=np.uint8)
    picture = heat_picture(levels, HeatScale(16, exceeded=True))
    assert (picture.size, picture.mode) == ((4, 1), "RGB")
    ends = heat_colours(3)
    drawn = ["#{:02x}{:02x}{:02x}".format(*picture.getpixel((x, 0))) for x in range(4)]
    assert drawn == [ends[0], ends[1], ends[2], ends[2]]


def test_brighter_is_further_apart_in_grey_too():
    levels = np.arange(256, dtype=np.uint8)[None]
    grey = np.asarray(heat_picture(levels, HeatScale(255, exceeded=False)).convert("L")).astype(int)
    assert (np.diff(grey[0]) >= 0).all() and np.ptp(grey[0]) > 200
