"""Jobs that are held: what they loaded stays, questions are answered, their ends are told."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from child_jobs import ADDING, ENVIRONMENT, PRELOAD, Add, Start

from quantolab.errors import ArgumentError, JobFailed
from quantolab.processes.children import Children


@pytest.fixture(scope="module", params=[True, False], ids=["forked", "fresh"])
def children(request):
    with Children(PRELOAD, fork=request.param, environment=ENVIRONMENT) as pool:
        yield pool


def test_several_are_held_and_asked_in_any_order(children, tmp_path):
    held = [children.hold(ADDING, Start(n), folder=tmp_path / f"{n}") for n in (10, 20)]
    assert [one.found for one in held] == [Add(10), Add(20)]
    steps = []
    assert held[1].ask(Add(1), Add, watch=steps.append) == Add(21)
    assert held[0].ask(Add(2), Add) == Add(12)
    assert held[1].ask(Add(3), Add) == Add(24)
    assert [event.kind for event in steps] == ["step"]
    processes = [psutil.Process(one._job._started_pid()) for one in held]
    for one in held:
        one.end()
        one.end()  # twice is once
    assert not psutil.wait_procs(processes, 10)[1]


def test_one_that_dies_or_raises_says_so_and_the_others_go_on(children, tmp_path):
    killed, raising, well = (
        children.hold(ADDING, Start(0), folder=tmp_path / name) for name in ("a", "b", "c")
    )
    with pytest.raises(JobFailed, match="SIGKILL"):
        killed.ask(Add(0), Add)
    with pytest.raises(ArgumentError, match="only more"):
        raising.ask(Add(-1), Add)
    assert well.ask(Add(5), Add) == Add(5)
    os.kill(well._job._started_pid(), signal.SIGKILL)  # while nobody asks
    with pytest.raises(JobFailed, match="SIGKILL"):
        well.ask(Add(1), Add)
    for one in (killed, raising, well):
        one.end()
