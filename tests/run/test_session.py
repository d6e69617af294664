"""How far a run is and how long it will take, told by a clock that the test turns."""

from quantolab.processes.jobs import Event
from quantolab.run.asked import check_request
from quantolab.run.session import Session

PICTURE = Event("picture")


def test_the_time_to_go_is_what_the_pictures_so_far_say(pipeline_folder):
    now, told = 100.0, []
    session = Session(
        check_request(pipeline_folder, ["none"]),
        total=6, watch=told.append, cancel=None, stall_seconds=60, clock=lambda: now,
    )  # fmt: skip

    def hear(event, after):
        nonlocal now
        now += after
        session.hear(event)
        return told[-1]

    # Loading takes long, and says nothing of how long a picture takes; nor does the first one,
    # which has all of that before it.
    assert hear(Event("stage", stage="loading"), 50).eta_seconds is None
    first = hear(PICTURE, 20)
    assert (first.done, first.elapsed_seconds, first.eta_seconds) == (1, 70, None)
    assert hear(PICTURE, 3).eta_seconds == 4 * 3
    assert hear(PICTURE, 5).eta_seconds == 3 * (3 + 5) / 2
    # What passes without a picture counts as well: the next recipe is loaded too.
    waited = hear(Event("stage", stage="timing"), 2)
    assert (waited.stage, waited.eta_seconds) == ("timing", 3 * 10 / 2)
    last = [hear(PICTURE, 4) for _ in range(3)][-1]
    assert (last.done, last.elapsed_seconds, last.eta_seconds) == (6, 92, 0)
    assert hear(PICTURE, 1).eta_seconds == 0  # one more than was reckoned with
