"""Timing in rounds: how it is decided what fits together, what a round keeps, what resume adds."""

from __future__ import annotations

import dataclasses

import pytest

import quantolab as ql
from quantolab.devices import held_bytes
from quantolab.recipes import Recipe
from quantolab.records import ALONE, PAIRS, ROUNDS, Conditions, Timing, Trial
from quantolab.report.tables import readable
from quantolab.run import rounds
from quantolab.run.jobs import Generated, TrialFound
from quantolab.run.rounds import bytes_of_others, is_open, way_of_timing
from quantolab.run.session import Session

CONDITIONS = Conditions("a processor", 2, "Linux", "3", "2", "0", "5", "0")
FAST = {"steps": 2, "dtype": "float32", "watch": lambda progress: None}


def found(room, *, private=150, peak=1000):
    """Return what a reference of 100 bytes found, with so many bytes free."""
    return TrialFound(
        100, 100, peak, 0.1, None, Timing(()), (), CONDITIONS,
        private_bytes=private, room_bytes=room,
    )  # fmt: skip


def waiting(*predicted):
    words = ("float8", "int8", "int4", "int2")
    return [
        Trial(Recipe(word), predicted_weight_bytes=count)
        for word, count in zip(words, predicted, strict=False)
    ]


@pytest.mark.parametrize(
    ("room", "way"),
    # Each needs its weights and the 50 that the reference holds beside its own: 100 and 70.
    [(None, ROUNDS), (200, ROUNDS), (180, PAIRS), (112, PAIRS), (100, ALONE), (0, ALONE)],
)
def test_how_trials_are_timed_is_told_by_what_is_free(room, way):
    later = waiting(50, 20)
    assert way_of_timing(found(room), later, on_cpu=True, against_first=True) == way


def test_without_a_reference_there_are_no_pairs():
    assert way_of_timing(found(180), waiting(50, 20), on_cpu=True, against_first=False) == ALONE


def test_on_an_accelerator_its_own_peak_counts():
    assert way_of_timing(found(200), waiting(50), on_cpu=False, against_first=True) == ALONE
    assert way_of_timing(found(2000), waiting(50), on_cpu=False, against_first=True) == ROUNDS
    # Each process has a context there, too.
    beside = dataclasses.replace(found(2000), beside_bytes=900)
    assert way_of_timing(beside, waiting(50), on_cpu=False, against_first=True) == ALONE


def test_nobody_waits_for_a_trial_that_is_the_last():
    assert way_of_timing(found(0), [], on_cpu=True, against_first=True) == ROUNDS


def numbered(seconds, numbers):
    return Trial(Recipe("int8"), "ok", timing=Timing(tuple(seconds), rounds=tuple(numbers)))


def test_a_verdict_is_open_until_it_stands_or_the_limit_is_reached():
    reference = numbered([1.0] * 8, range(8))
    swinging = numbered([0.9, 1.1] * 4, range(8))
    assert is_open(swinging, reference, 9)
    assert not is_open(swinging, reference, 8)
    assert not is_open(numbered([2.0] * 8, range(8)), reference, 99)
    assert is_open(numbered([2.0] * 5, range(5)), reference, 99)


@dataclasses.dataclass
class Moving:
    """A process that another kind of device takes over in the middle."""

    found: TrialFound


def test_seconds_of_two_kinds_of_device_make_no_row():
    held = Moving(found(None))
    kept = dataclasses.replace(numbered([5.0], [0]), conditions=CONDITIONS)
    alive = rounds._Alive(kept, held, ROUNDS)
    alive.take(1, Generated(4.0, True, None, 0.0))
    assert alive.timed_trial().timing.samples == (5.0, 4.0)
    assert alive.timed_trial().timed_on is None
    other = dataclasses.replace(CONDITIONS, device_name="another processor")
    held.found = dataclasses.replace(held.found, conditions=other)
    alive.take(2, Generated(1.0, True, None, 0.0))
    alive.take(3, Generated(2.0, True, None, 0.0))
    moved = alive.timed_trial()
    assert (moved.timing.samples, moved.timing.rounds) == ((1.0, 2.0), (2, 3))
    assert (moved.timed_on, moved.conditions) == (other, CONDITIONS)
    # What it has stands beside seconds of the same kind alone; what has none, beside any.
    assert rounds.on_the_same_machine(moved, held.found)
    assert not rounds.on_the_same_machine(moved, found(None))
    assert rounds.on_the_same_machine(numbered([], []), held.found)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("told", "alive", "others"),
    [
        ([], 0, None),
        ([None, None], 2, None),  # the device doesn't say
        ([(40 * GIB, 5 * GIB)], 2, None),  # one of ours gave no answer: what it holds isn't known
        ([(40 * GIB, 5 * GIB), (40 * GIB, 9 * GIB)], 2, 24 * GIB),
        ([(41 * GIB, 5 * GIB), (40 * GIB, 9 * GIB)], 2, 24 * GIB),
        ([(15 * GIB, 5 * GIB), (15 * GIB, 9 * GIB)], 2, 0),  # what drivers take is nobody else's
    ],
)
def test_what_others_hold_of_an_accelerator_is_what_ours_do_not(told, alive, others):
    answers = [Generated(1.0, True, None, 0.0, device_bytes=bytes) for bytes in told]
    assert bytes_of_others(answers, alive) == others


def test_other_programs_on_the_accelerator_are_told_and_withhold_nothing(
    pipeline_folder, monkeypatch
):
    """As where the device tells what everybody holds of it; a processor doesn't."""
    ask = Session.ask

    def beside_others(self, held, asks, answer):
        found = ask(self, held, asks, answer)
        return dataclasses.replace(found, device_bytes=(12 * GIB, 2 * GIB))

    monkeypatch.setattr(Session, "ask", beside_others)
    run = ql.compare(pipeline_folder, ["none", "int8"], "a fox", repeats=6, **FAST)
    table = ql.results_table(run)
    assert table.other_bytes.tolist() == [6 * GIB] * 2
    assert table.verdict[1] is not None
    said = [note for note in readable(table).notes if note.startswith("Other programs held")]
    (note,) = said
    assert note.startswith("Other programs held 6.44 GB or more of the ")
    assert "Other programs held" in run._repr_html_()


def test_held_bytes_are_asked_for_where_a_device_tells(monkeypatch):
    import torch

    assert held_bytes("cpu") is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    assert held_bytes("cuda:1") == (50 * GIB, 3 * GIB)
    assert held_bytes("mps") is None  # it doesn't say what others hold


@pytest.fixture(scope="module")
def folder(pipeline_folder, tmp_path_factory):
    """Return the folder of a run of two recipes in six rounds."""
    out = tmp_path_factory.mktemp("rounds") / "run"
    ql.compare(pipeline_folder, ["none", "int8"], "a fox", repeats=6, out=out, **FAST)
    return out


def test_everybody_takes_part_in_every_round(folder):
    run = ql.load_comparison(folder)
    assert [t.timing.rounds for t in run.trials] == [tuple(range(6))] * 2
    assert [t.timing.timed for t in run.trials] == [ROUNDS] * 2
    table = ql.results_table(run)
    assert table.repeats.tolist() == [6, 6]
    assert table.timed.tolist() == ["rounds", "rounds"]
    assert table.speed_reference.tolist() == ["none", "none"]
    assert table.verdict[1] is not None
    assert table.speedup_low[1] <= table.speedup[1] <= table.speedup_high[1]


def test_the_floor_is_measured_once(folder):
    floor = ql.load_comparison(folder).floor
    assert [(q.prompt, q.seed) for q in floor] == [("a fox", 0)]


def test_resume_adds_rounds_and_recipes_are_timed_with_the_reference(folder, pipeline_folder):
    before = ql.load_comparison(folder).trials
    recipes = ["none", "int8", "int4"]
    told = []
    run = ql.compare(
        pipeline_folder, recipes, "a fox", repeats=7, out=folder, resume=True, steps=2,
        dtype="float32", watch=told.append,
    )  # fmt: skip
    none, int8, int4 = (trial.timing for trial in run.trials)
    assert none.samples[:6] == before[0].timing.samples
    assert int8.samples[:6] == before[1].timing.samples
    assert set(range(6, 13)) <= set(none.rounds) == set(range(len(none.rounds)))
    assert len(int8.samples) >= 7
    assert int4.rounds == tuple(range(6, 13))
    assert told[-1].done == told[-1].total


def test_what_fits_only_beside_the_reference_is_timed_in_pairs(pipeline_folder, monkeypatch):
    monkeypatch.setattr(rounds, "way_of_timing", lambda *a, **k: PAIRS)
    run = ql.compare(pipeline_folder, ["none", "int8", "int4"], "a fox", repeats=2, **FAST)
    none, int8, int4 = (trial.timing for trial in run.trials)
    assert (none.rounds, int8.rounds, int4.rounds) == ((0, 1, 2, 3), (0, 1), (2, 3))
    assert {int8.timed, int4.timed, none.timed} == {PAIRS}


def test_what_fits_nowhere_is_timed_alone_without_a_verdict(pipeline_folder, monkeypatch):
    monkeypatch.setattr(rounds, "way_of_timing", lambda *a, **k: ALONE)
    run = ql.compare(pipeline_folder, ["none", "int8"], "a fox", repeats=6, **FAST)
    table = ql.results_table(run)
    assert table.timed.tolist() == ["alone", "alone"]
    assert table.verdict.tolist() == [None, None]
    assert table.repeats.tolist() == [6, 6]
    assert table.speedup.notna().all()


def test_rounds_go_on_until_decided_and_end_at_the_limit(pipeline_folder):
    run = ql.compare(
        pipeline_folder, ["none", "int8"], "a fox", repeats=1, until_decided=True, most_rounds=7,
        **FAST,
    )  # fmt: skip
    count = len(run.trials[1].timing.samples)
    assert 6 <= count <= 7
    table = ql.results_table(run)
    assert count == 7 or table.verdict[1] != "not decided"
