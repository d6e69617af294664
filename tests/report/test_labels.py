"""Where labels go: each rule of `place_labels` alone, in scenes that can be worked out by hand.

The label of most scenes is 20 wide and 10 high and belongs to a marker of radius 5 at (100, 100).
Its nearest places are 3 away from the marker: `NEAR`, in the order in which they are tried.
"""

import dataclasses
import itertools

import pytest

from quantolab.report.labels import Box, Spot, leader_meets, place_labels

SPOT, SIZE = Spot(100, 100, 5), (20, 10)
WIDE = Box(0, 0, 400, 400)
RIGHT, ABOVE = Box(108, 95, 128, 105), Box(90, 108, 110, 118)
LEFT, BELOW = Box(72, 95, 92, 105), Box(90, 82, 110, 92)
NEAR = (
    RIGHT, Box(105.657, 105.657, 125.657, 115.657), Box(105.657, 84.343, 125.657, 94.343), ABOVE,
    BELOW, LEFT, Box(74.343, 105.657, 94.343, 115.657), Box(74.343, 84.343, 94.343, 94.343),
)  # fmt: skip


def place(*, markers=(), frame=WIDE, upright=()):
    """Return the place of the one label among bare markers, rounded."""
    sizes = [SIZE] + [(0, 0)] * len(markers)
    box = place_labels([SPOT, *markers], sizes, frame=frame, upright=upright)[0]
    return Box(*(round(number, 3) for number in dataclasses.astuple(box)))


def middle(box):
    return Spot((box.left + box.right) / 2, (box.bottom + box.top) / 2, 1)


def test_a_lone_label_goes_to_the_right():
    assert place() == RIGHT


@pytest.mark.parametrize("taken", range(8))
def test_directions_are_tried_in_order(taken):
    assert place(markers=[middle(box) for box in NEAR[:taken]]) == NEAR[taken]


def test_the_nearest_free_place_is_taken():
    """Each near place has a marker where it begins, so that the second ring is free."""
    markers = [
        Spot(100 + 9 * across, 100 + 9 * up, 0.5)
        for across, up in itertools.product((-1, 0, 1), repeat=2)
        if (across, up) != (0, 0)
    ]
    assert place(markers=markers) == Box(115, 95, 135, 105)


@pytest.mark.parametrize("distance", [10, 20, 32, 46, 62, 80, 100])
def test_a_label_comes_out_from_under_a_large_marker(distance):
    """Each marker leaves the place at this distance just free."""
    marker = Spot(100, 100, 3.9 + distance)
    assert place(markers=[marker]) == Box(105 + distance, 95, 125 + distance, 105)


def test_of_equally_bad_places_the_first_is_taken():
    assert place(frame=Box(0, 0, 1, 1)) == RIGHT


def test_labels_stay_in_the_frame():
    assert place(frame=Box(0, 0, 128, 400)) == RIGHT
    assert place(frame=Box(0, 0, 127.9, 400)) == NEAR[1]
    assert place(frame=Box(0, 0, 120, 400)) == ABOVE


def test_a_marker_keeps_its_margin():
    assert place(markers=[Spot(118, 110, 4.1)]) != RIGHT  # 5 away: its radius and 1 more
    assert place(markers=[Spot(118, 110, 3.9)]) == RIGHT


def test_upright_lines_are_not_crossed_and_keep_a_margin():
    assert place(upright=[118]) == ABOVE
    assert place(upright=[130.1]) == RIGHT
    assert place(upright=[129.9]) == NEAR[1]
    assert place(upright=[106.1]) == LEFT
    assert place(upright=[105.9]) == RIGHT


def test_labels_keep_apart():
    """Up and to the right would be free, yet nearer than 2 to the first."""
    assert place_labels([SPOT] * 2, [SIZE] * 2, frame=WIDE) == (RIGHT, ABOVE)


def test_labels_of_one_spot_are_all_apart():
    placed = place_labels([Spot(200, 200, 4)] * 8, [(90, 12)] * 8, frame=WIDE)
    assert [a.overlap(b) for a, b in itertools.combinations(placed, 2)] == [0] * 28
    assert place_labels([], [], frame=Box(0, 0, 1, 1)) == ()


# --- what is given up first -------------------------------------------------------------------


def test_rather_outside_than_over_another_label():
    """The second label has room in the frame only right below the first, nearer than 2."""
    found = place_labels([SPOT, Spot(118, 84, 1)], [SIZE, (20, 6)], frame=Box(100, 80, 128, 105))
    assert found == (RIGHT, Box(122, 81, 142, 87))


def test_rather_across_a_line_than_over_a_marker():
    frame = Box(60, 90, 140, 110)  # room to the right, at a marker, and to the left, on a line
    assert place(frame=frame, markers=[Spot(120, 108, 3)], upright=[76]) == LEFT


# A second marker right below the first one's label. Its own label is so wide that, in this frame,
# it can only go above (where it is free from 113 on) or below.
OTHER, BROAD = Spot(118, 92, 1), (90, 6)
HIGH = Box(73, 113, 163, 119)


def place_both(bottom, markers=()):
    """Return the places of both labels in a frame that ends somewhere below."""
    sizes = [SIZE, BROAD] + [(0, 0)] * len(markers)
    frame = Box(60, bottom, 165, 400)
    return place_labels([SPOT, OTHER, *markers], sizes, frame=frame)[:2]


def test_rather_a_leader_through_a_label_than_outside_and_that_label_gives_way():
    """Only above is in the frame; then the first label, to the right at first, is placed again."""
    assert place_both(bottom=90) == (LEFT, HIGH)


def test_no_leader_through_a_label_where_there_is_another_place():
    """Above and the third place below are as far away; above is tried first."""
    markers = [Spot(118, 85, 1), Spot(118, 78, 1)]
    assert place_both(bottom=0, markers=markers) == (RIGHT, Box(73, 65, 163, 71))


def test_rather_over_a_marker_than_a_leader_through_a_label():
    assert place_both(bottom=80, markers=[Spot(118, 79, 3)]) == (RIGHT, Box(73, 82, 163, 88))


def test_boxes():
    box = Box(0, 0, 4, 2)
    assert box.grown(2) == Box(-2, -2, 6, 4)
    assert box.overlap(Box(3, 1, 9, 9)) == 1
    assert box.overlap(Box(1, 5, 2, 6)) == 0  # beside it in one direction alone
    assert box.overlap(Box(5, 0, 6, 2)) == 0


def test_leaders():
    assert leader_meets(Spot(0, 0, 1), Box(24, -1, 30, 1), Box(23.6, -1, 24.2, 1))  # at its end
    assert leader_meets(Spot(0, 0, 1), Box(10, -1, 20, 1), Box(4, -1, 6, 1))
    assert not leader_meets(Spot(0, 0, 1), Box(10, -1, 20, 1), Box(4, 2, 6, 4))
    assert leader_meets(Spot(0, 0, 1), Box(10, -1, 20, 1), Box(8.5, -1, 9.5, 1))  # near its end
    assert leader_meets(Spot(0, 0, 1), Box(10, -50, 20, 50), Box(4, -1, 6, 1))  # straight there


@pytest.mark.parametrize(
    ("others", "upright"),
    [
        ([], 129.5),  # nearer than 2 to the first place
        ([], 106.5),  # the same on its other side
        ([(118, 110.5)], 300),  # nearer than 1 to a marker
        ([(100, 111.5)], 300),  # its first place would be nearer than 2 to another label
    ],
)
def test_at_twice_the_resolution_everything_is_twice_as_large(others, upright):
    def placed(by):
        spots = [Spot(by * x, by * y, by * 5) for x, y in ((100, 100), *others)]
        sizes = [(by * 20, by * 10)] * len(spots)
        frame = Box(0, 0, by * 400, by * 400)
        return place_labels(spots, sizes, frame=frame, upright=[by * upright], step=by)

    for once, twice in zip(placed(1), placed(2), strict=True):
        doubled = [2 * number for number in dataclasses.astuple(once)]
        assert dataclasses.astuple(twice) == pytest.approx(doubled)
