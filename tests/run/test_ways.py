"""How recipes get onto a device: the mildest way that fits, and tiles for all or none."""

import pytest

from quantolab.errors import ArgumentError
from quantolab.planning.needs import CONTEXT_BYTES, Needs
from quantolab.run.asked import check_request
from quantolab.run.session import Session
from quantolab.run.ways import (
    OFFLOADS,
    Way,
    check_offload,
    chosen_ways,
    milder,
    way_words,
    with_room,
)

LARGE = Needs(10, 100, 90, 60, 40, 20)
SMALL = Needs(10, 50, 40, 35, 30, 20)


@pytest.mark.parametrize(
    ("free", "large", "small"),
    [
        (None, Way(), Way()),
        (100, Way(), Way()),
        (95, Way("none", True), Way("none", True)),
        (60, Way("model", True), Way("none", True)),
        (40, Way("group", True), Way("none", True)),
        (30, Way("sequential", True), Way("group", True)),
        (5, Way("sequential", True), Way("sequential", True)),
    ],
)
def test_the_mildest_that_fits(free, large, small):
    ways = chosen_ways({"none": LARGE, "int8": SMALL}, free)
    assert ways == {"none": large, "int8": small}


def test_tiles_are_left_where_they_save_nothing_and_what_is_unknown_stays():
    one_tile = Needs(10, 100, 100, 60, 40, 20)
    assert chosen_ways({"none": one_tile, "int8": None}, 70) == {
        "none": Way("model"), "int8": Way(),
    }  # fmt: skip


def test_it_is_said_in_a_line():
    needs = {"none": LARGE, "int8": SMALL}
    assert way_words(chosen_ways(needs, 100), needs, 100) is None
    said = way_words(chosen_ways(needs, 60), needs, 60)
    assert said == (
        "none by --offload model and every VAE decodes in tiles: 100 B would be needed, 60 B are "
        "free"
    )


def test_after_running_out_of_memory_the_next_is_milder(pipeline_folder):
    ways = [Way()]
    while (way := milder(ways[-1])) is not None:
        ways.append(way)
    assert [way.offload for way in ways] == list(OFFLOADS)
    for device, offload, wanted in (
        ("cuda:1", None, Way("model")), ("cuda", "none", None), ("cpu", None, None),
    ):  # fmt: skip
        request = check_request(
            pipeline_folder, ["int8"], size=(32, 32), device=device, offload=offload
        )
        session = Session(request, total=1, watch=print, cancel=None, stall_seconds=1)
        assert session.after_out_of_memory(request.recipes[0]) == wanted
        assert session.trial_job(request.recipes[0], None).way == (wanted or Way())


@pytest.mark.parametrize(
    ("offload", "device", "said"),
    [
        ("modle", "cuda", "did you mean 'model'"),
        ("group", "cpu", "shares the processor's"),
        ("model", "mps", "shares the processor's"),
    ],
)
def test_ways_that_there_are_not_are_refused(offload, device, said):
    with pytest.raises(ArgumentError, match=said):
        check_offload(offload, device)
    assert check_offload("none", "cpu") == "none"


def test_a_block_is_fetched_ahead_where_twice_the_groups_have_room():
    need = Needs(None, 900, 900, 800, CONTEXT_BYTES + 100, 10)
    enough = CONTEXT_BYTES + 200
    assert with_room(Way("group"), need, enough) == Way("group", ahead=True)
    assert with_room(Way("group"), need, enough - 1) == Way("group")
    assert with_room(Way("group"), None, enough) == with_room(Way("group"), need, None)
    assert with_room(Way("sequential"), need, enough) == Way("sequential")
