"""How far a run is: pictures, seconds passed and seconds to go, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from quantolab.processes.jobs import Event
from quantolab.run import session as session_room
from quantolab.run.asked import check_request
from quantolab.run.jobs import MAKING
from quantolab.run.session import Session

PICTURE = Event("picture")


class Run:
    """A session whose clock is set by hand, and whose job tells what it is told to tell."""

    def __init__(self, monkeypatch, total):
        self.now = 1000.0
        self.progress = []
        monkeypatch.setattr(session_room, "Children", lambda preload, keep: self)
        self.session = Session(
            check_request("demo"),
            total=total,
            watch=self.progress.append,
            cancel=None,
            stall_seconds=1,
            clock=lambda: self.now,
        )

    def run(self, kind, asked, *, watch, **_):
        """What child processes do, here at once."""
        for seconds, event in asked:
            self.now += seconds
            watch(event)

    def tell(self, *story):
        """Have a job tell events, each some seconds after the one before."""
        self.session.job(None, story, Path())
        return self.progress[-1]


@pytest.fixture
def run(monkeypatch):
    return Run(monkeypatch, total=10)


def test_the_first_picture_says_nothing_of_the_seconds_to_go(run):
    """What is paid once, imports and loading among it, would count for every picture."""
    assert run.tell((5.0, Event("stage", stage="loading"))).eta_seconds is None
    assert run.tell((60.0, PICTURE)).eta_seconds is None


def test_the_seconds_to_go_are_those_of_a_picture_so_far_for_each_that_is_left(run):
    assert run.tell((60.0, PICTURE), (2.0, PICTURE)).eta_seconds == 8 * 2.0
    assert run.tell((4.0, PICTURE)).eta_seconds == 7 * 3.0
    assert run.tell((3.0, Event("step"))).eta_seconds == 7 * 4.5
    assert [p.done for p in run.progress] == [1, 2, 3, 3]
    assert {p.total for p in run.progress} == {10}


def test_seconds_passed_are_counted_from_the_start(run):
    run.tell((60.0, PICTURE), (2.5, PICTURE))
    assert [p.elapsed_seconds for p in run.progress] == [60.0, 62.5]
    assert run.session.elapsed == 62.5


def test_pictures_that_were_there_or_are_not_made_are_not_waited_for(run):
    """A resumed run begins with some, a trial that failed leaves some out; neither took time."""
    run.session.done = 4
    assert run.tell((1.0, PICTURE), (2.0, PICTURE)).eta_seconds == 4 * 2.0
    run.session.done = 9
    run.session.tell()
    assert run.progress[-1].eta_seconds == 2.0


def test_more_pictures_than_expected_leave_nothing_to_wait_for(run):
    assert run.tell(*[(1.0, PICTURE)] * 12).eta_seconds == 0.0


def test_a_recipe_has_its_own_seconds_to_go(run):
    """While its pictures are made: of a slower recipe they say more than the average does."""
    pairs = [("a", seed) for seed in range(4)]
    run.session.request = SimpleNamespace(workload=SimpleNamespace(pairs=pairs))
    made = [Event("stage", stage=MAKING), PICTURE, PICTURE]
    for label, seconds in (("int8", 1.0), ("int2", 5.0)):
        run.session.enter_stage("loading", label)
        assert run.progress[-1].own_eta_seconds is None
        told = run.tell(*[(seconds, event) for event in made])
        assert told.own_eta_seconds == 2 * seconds
    assert run.tell((0.0, Event("stage", stage="timing"))).own_eta_seconds is None
