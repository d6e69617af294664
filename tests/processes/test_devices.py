"""Whatever an import has begun with a device: no job meets it in a fork that torch refuses."""

from __future__ import annotations

import os

import pytest
from child_jobs import ADDING, ENVIRONMENT, PRELOAD, REACH, Add, Reach, Start

from quantolab.processes.children import Children


@pytest.fixture(
    scope="module",
    params=["xpu", *(pytest.param(kind, marks=pytest.mark.sweep) for kind in ("cuda", "mps"))],
)
def touched(request):
    """Children of a server whose imports have begun with a device, and which."""
    environment = {**ENVIRONMENT, "BEGINS_WITH": request.param}
    with Children(PRELOAD, fork=True, environment=environment) as pool:
        yield request.param, pool


def test_a_device_that_an_import_has_begun_with_is_reached(touched, tmp_path):
    kind, pool = touched
    found = pool.run(REACH, Reach(kind), folder=tmp_path)
    assert not found.refused
    assert found.parent == os.getpid()  # a process of its own, and no fork of the server


def test_jobs_are_held_there_as_elsewhere(touched, tmp_path):
    held = touched[1].hold(ADDING, Start(1), folder=tmp_path)
    assert held.ask(Add(2), Add) == Add(3)
    held.end()


def test_otherwise_jobs_are_forked(tmp_path):
    with Children(PRELOAD, fork=True, environment=ENVIRONMENT) as pool:
        found = pool.run(REACH, Reach("xpu"), folder=tmp_path)
    assert not found.refused
    assert found.parent != os.getpid()
