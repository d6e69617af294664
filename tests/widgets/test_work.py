"""One job at a time, and when the next may begin."""

import threading

import pytest

from quantolab.errors import ArgumentError, Cancelled
from quantolab.widgets.background import Work


def nothing(*_):
    pass


def start(work, job, **callbacks):
    callbacks = dict.fromkeys(("done", "failed", "cancelled", "last"), nothing) | callbacks
    work.start(job, **callbacks)


def test_the_next_may_begin_when_last_is_called_and_not_before():
    work, order = Work(), []

    def shown(value):
        with pytest.raises(ArgumentError, match="is at work"):
            start(work, nothing)
        assert not work.cancel()  # there is nothing to end any more
        order.append(value)

    def last():
        order.append("last")
        start(work, lambda: 2, done=order.append)

    start(work, lambda: 1, done=shown, failed=order.append, last=last)
    assert work.wait(10) and work.wait(10)  # the first, the second
    assert order == [1, "last", 2]


@pytest.mark.parametrize(
    ("error", "expected"), [(Cancelled("asked"), "cancelled"), (ValueError("bad"), "failed")]
)
def test_how_a_job_ended(error, expected):
    def job():
        raise error

    work, order = Work(), []
    start(
        work,
        job,
        done=lambda _: order.append("done"),
        failed=lambda _: order.append("failed"),
        cancelled=lambda: order.append("cancelled"),
        last=lambda: order.append("last"),
    )
    assert work.wait(10)
    assert order == [expected, "last"]


def test_an_answer_that_cannot_be_shown_is_a_failure_and_frees_the_panel():
    def done(_):
        raise KeyError("x")

    work, failures = Work(), []
    start(work, nothing, done=done, failed=failures.append)
    assert work.wait(10)
    assert isinstance(failures[0], KeyError) and not work.running


def test_cancel_is_heard_once():
    work, running = Work(), threading.Event()

    def job():
        running.set()
        assert work.cancel_asked.wait(10)
        raise Cancelled("asked")

    start(work, job)
    assert running.wait(10)
    assert work.cancel() and not work.cancel()
    assert work.wait(10) and not work.cancel()
