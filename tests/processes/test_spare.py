"""A server that waits for whoever needs one like it next: as good as a new one, and as mortal."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from child_jobs import ADDING, ENVIRONMENT, PRELOAD, Start

from quantolab.processes import spare
from quantolab.processes.children import SPARE, Children
from quantolab.processes.spare import Spare, circumstances


def used(folder, **changes):
    """Run a job in children that keep their server; return the server's process."""
    arguments = {"preload": PRELOAD, "environment": ENVIRONMENT, "keep": True, **changes}
    with Children(**arguments) as pool:
        pool.hold(ADDING, Start(1), folder=folder).end()
        return process_of(pool)


def process_of(pool):
    return psutil.Process(pool._server._process.pid)


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def soon(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that has served."""
    SPARE.close()
    yield used(tmp_path_factory.mktemp("first"))
    SPARE.close()


def test_who_comes_next_takes_it_over(server, tmp_path):
    assert used(tmp_path) == server
    assert not server.children()  # what it was asked for has ended


def test_jobs_that_still_run_are_no_hindrance_to_being_kept_and_end(server, tmp_path):
    with Children(PRELOAD, environment=ENVIRONMENT, keep=True) as pool:
        held = [pool.hold(ADDING, Start(n), folder=tmp_path / f"{n}") for n in range(3)]
        jobs = [psutil.Process(one._job._started_pid()) for one in held]
        for one in held:
            one.end()
    assert all(map(gone, jobs))
    assert used(tmp_path) == server


def test_nobody_else_is_given_it(server, tmp_path):
    """Only who keeps theirs takes one over, so that a check in a fresh process is one."""
    with Children(PRELOAD, environment=ENVIRONMENT) as pool:
        pool.hold(ADDING, Start(1), folder=tmp_path).end()
        other = process_of(pool)
    assert other != server and gone(other) and not gone(server)


def changed_environment(patch, tmp_path):
    patch.setenv("HF_HOME", "/elsewhere")


def changed_processors(patch, tmp_path):
    before = os.sched_getaffinity(0)
    patch.setattr(spare.os, "sched_getaffinity", lambda pid: before | {9999})


def changed_limit(patch, tmp_path):
    now = resource.getrlimit(resource.RLIMIT_CORE)
    patch.setattr(resource, "getrlimit", lambda which: (1, 1) if which == 4 else now)


def changed_code(patch, tmp_path):
    patch.setattr(spare, "_changed", lambda place: 1 if place.name == "engine.py" else 0)


def changed_libraries(patch, tmp_path):
    patch.setattr(spare, "_changed", lambda place: 1 if place.name == "site-packages" else 0)


CHANGES = [
    changed_environment, changed_processors, changed_limit, changed_code, changed_libraries,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_where_anything_has_changed_that_a_new_one_would_see_it_does_not_do(
    change, monkeypatch, tmp_path
):
    had = circumstances(PRELOAD, ENVIRONMENT)
    assert had.suits(circumstances(PRELOAD, ENVIRONMENT))
    change(monkeypatch, tmp_path)
    assert not had.suits(circumstances(PRELOAD, ENVIRONMENT))


def test_the_current_folder_counts_where_it_is_imported_from(monkeypatch, tmp_path):
    for relative in (True, False):
        environment = {"PYTHONPATH": os.pathsep.join(("mine" if relative else "/mine", "/theirs"))}
        had = circumstances(PRELOAD, environment)
        (tmp_path / f"{relative}").mkdir()
        monkeypatch.chdir(tmp_path / f"{relative}")
        assert had.suits(circumstances(PRELOAD, environment)) != relative


def test_jobs_are_where_who_orders_them_is(monkeypatch, tmp_path):
    found = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with Children(PRELOAD, environment=ENVIRONMENT, keep=True) as pool:
            held = pool.hold(ADDING, Start(1), folder=tmp_path / "job")
            job = psutil.Process(held._job._started_pid())
            assert job.cwd() == str(tmp_path / name)
            found.add(job.ppid())
            held.end()
    assert len(found) == 1  # one server


def test_more_classes_than_are_wanted_do_and_fewer_do_not():
    few = replace(PRELOAD, classes=(("diffusers", "FluxPipeline"),))
    many = replace(PRELOAD, classes=(*few.classes, ("diffusers", "SanaPipeline")))
    few, many, none = (circumstances(p, {}) for p in (few, many, PRELOAD))
    assert many.suits(few) and few.suits(none)
    assert not few.suits(many) and not none.suits(few)
    assert not few.suits(circumstances(replace(few.preload, modules=()), {}))


def test_the_moment_s_names_are_of_no_account(monkeypatch):
    had = circumstances(PRELOAD, {})
    for name in ("PYTEST_CURRENT_TEST", "OLDPWD", "COLUMNS"):
        monkeypatch.setenv(name, "another")
    assert had.suits(circumstances(PRELOAD, {}))


def test_one_that_does_not_do_or_was_killed_or_met_an_error_is_followed_by_another(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    second = used(tmp_path)
    assert second != server and gone(server)
    second.kill()
    soon(lambda: gone(second))
    third = used(tmp_path)
    assert third != second and not gone(third)
    with (
        pytest.raises(ZeroDivisionError),
        Children(PRELOAD, environment=ENVIRONMENT, keep=True) as pool,
    ):
        job = psutil.Process(pool.hold(ADDING, Start(1), folder=tmp_path / "b")._job._started_pid())
        assert process_of(pool) == third
        raise ZeroDivisionError
    assert gone(third) and gone(job)


class Waiting:
    """What a spare keeps, and what it does with it."""

    gone = False

    def __init__(self):
        self.closed = threading.Event()

    def close(self):
        self.closed.set()

    def let_go(self):
        """Belong to another process."""


def test_it_waits_for_a_while_and_there_is_one_at_most():
    had = circumstances(PRELOAD, {})
    kept, first, second, third = Spare(0.2), Waiting(), Waiting(), Waiting()
    kept.put(had, first)
    assert kept.take(had) is first
    assert kept.take(had) is None
    kept.put(had, second)
    kept.put(had, third)
    assert second.closed.is_set()
    assert third.closed.wait(30)
    assert not first.closed.is_set()  # taken: its time doesn't run
    assert kept.take(had) is None


SCRIPT = """
import os, sys, time
from pathlib import Path
from child_jobs import ADDING, ENVIRONMENT, PRELOAD, Start
from quantolab.processes.children import SPARE, Children
with Children(PRELOAD, environment=ENVIRONMENT, keep=True) as pool:
    pool.hold(ADDING, Start(1), folder=Path(sys.argv[1])).end()
    pid = pool._server._process.pid
"""
ENDS = {
    "well": "print(pid, flush=True)",
    "killed": "print(pid, flush=True); os.kill(os.getpid(), 9)",
    "by _exit": "print(pid, flush=True); os._exit(0)",
    # A process that was forked off lives on, and has neither the server nor a hold on it.
    "leaving a fork": (
        "if os.fork() == 0: assert SPARE._kept is None; os.close(1); time.sleep(60); os._exit(0)\n"
        "print(pid, flush=True); os._exit(0)"
    ),
}


@pytest.mark.parametrize(
    "end",
    [
        "killed",
        "leaving a fork",
        *(pytest.param(end, marks=pytest.mark.sweep) for end in ("well", "by _exit")),
    ],
)
def test_it_ends_with_the_process_that_it_waits_in(end, tmp_path):
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT + ENDS[end], str(tmp_path)],
        env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as parent:  # fmt: skip
        pid = int(parent.stdout.readline())
        parent.wait(30)
    try:
        if end == "well":
            assert not psutil.pid_exists(pid)  # at once: it was waited for
        soon(lambda: not psutil.pid_exists(pid) or gone(psutil.Process(pid)))
    finally:
        if end == "leaving a fork":
            os.killpg(parent.pid, signal.SIGKILL)
