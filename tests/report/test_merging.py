"""Runs of one workload, made apart and joined: what fits, what doesn't, and what seconds say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

import quantolab as ql
from quantolab.errors import ArgumentError, BrokenModelError, ModelNotFoundError
from quantolab.records import FAILED, Comparison, ModelContent
from quantolab.report.tables import readable
from quantolab.run import journal

SMALL = {"compiled": (), "prompts": ("a red cat",), "seeds": (0,), "size": (32, 32)}


@pytest.fixture
def two(make):
    """Two comparisons of the same workload, the unquantized reference in both."""
    return make(("none", "int8"), **SMALL), another_day(make(("none", "int4"), **SMALL))


def another_day(comparison: Comparison) -> Comparison:
    """Return a comparison whose seconds are no other's to the last digit."""

    def slower(trial):
        samples = tuple(seconds * 1.001 for seconds in trial.timing.samples)
        return dataclasses.replace(trial, timing=dataclasses.replace(trial.timing, samples=samples))

    return dataclasses.replace(comparison, trials=tuple(map(slower, comparison.trials)))


def merged(tmp_path, *comparisons: Comparison) -> Comparison:
    folders = [tmp_path / f"run-{number}" for number in range(len(comparisons))]
    for folder, comparison in zip(folders, comparisons, strict=True):
        journal.save(comparison, folder)
    return ql.merge(folders, tmp_path / "both")


def elsewhere(comparison: Comparison, name: str = "another card") -> Comparison:
    trials = [
        dataclasses.replace(t, conditions=dataclasses.replace(t.conditions, device_name=name))
        for t in comparison.trials
    ]
    return dataclasses.replace(comparison, trials=tuple(trials))


def changed(comparison: Comparison, label: str, **figures) -> Comparison:
    trials = [
        dataclasses.replace(t, **figures) if t.label == label else t for t in comparison.trials
    ]
    return dataclasses.replace(comparison, trials=tuple(trials))


def test_two_days_on_one_machine(tmp_path, two):
    """Each recipe has the verdict of its own rounds; the reference has the rounds of both."""
    both = merged(tmp_path, *two)
    table = ql.results_table(both).set_index("recipe")
    assert list(table.index) == ["none", "int8", "int4"]
    for one, label in zip(two, ("int8", "int4"), strict=True):
        alone = ql.results_table(one).set_index("recipe")
        for column in ("speedup", "speedup_low", "speedup_high", "verdict", "psnr_db", "ssim"):
            assert table[column][label] == alone[column][label]
    assert table.repeats["none"] == 14
    assert both.wall_seconds == 120
    assert {label for label, _, _ in both.images} == {"none", "int8", "int4"}
    again = ql.load_comparison(tmp_path / "both")
    assert again.trials == both.trials
    assert {p.name for p in (tmp_path / "both").iterdir()} >= {"results.csv", "grid.png"}
    assert list(ql.runs(tmp_path).state) == ["finished"] * 3


def longer(trial):
    """Return a trial that was timed in as many rounds again."""
    timing = trial.timing
    samples = (*timing.samples, *(seconds * 1.01 for seconds in timing.samples))
    timing = dataclasses.replace(timing, samples=samples, rounds=tuple(range(len(samples))))
    return dataclasses.replace(trial, timing=timing)


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_a_copy_of_a_run_holds_too_counts_once(tmp_path, two, goes_on):
    one = two[0]
    if goes_on:
        copy = dataclasses.replace(one, trials=tuple(longer(trial) for trial in one.trials))
    else:
        copy = one
    both = merged(tmp_path, one, copy)
    assert [t.timing.samples for t in both.trials] == [t.timing.samples for t in copy.trials]
    rounds = {trial.timing.rounds for trial in both.trials}
    assert len(rounds) == 1  # all took part in each
    assert len({*rounds.pop()}) == len(copy.trials[0].timing.samples)


def test_seconds_of_different_devices_have_no_verdict(tmp_path, two):
    table = ql.results_table(merged(tmp_path, two[0], elsewhere(two[1])))
    row = table.set_index("recipe").loc["int4"]
    assert row.device_name == "another card"
    assert row.verdict is None
    assert np.isnan(row.speedup)
    assert row.latency_seconds > 0  # measured it was
    assert table.set_index("recipe").verdict["int8"] is not None
    said = " ".join(readable(table).notes)
    assert "int4 by another card" in said
    assert "none and int8 by AMD EPYC 9R14" in said


def test_every_row_is_judged_against_the_same_reference(tmp_path, two):
    """Where the second run's own reference came out otherwise, on another device, that is said."""
    first, second = two
    key = ("none", "a red cat", 0)
    images = dict(second.images) | {key: Image.new("RGB", (32, 32), "red")}
    both = merged(tmp_path, first, elsewhere(dataclasses.replace(second, images=images)))
    assert both.images[key].tobytes() == first.images[key].tobytes()
    int4 = next(t for t in both.trials if t.label == "int4")

    # These pictures are those of `two`, so against the first reference nothing has changed.
    assert int4.quality[0].psnr_db == pytest.approx(second.trials[1].quality[0].psnr_db)
    assert any("device_name another card" in note for note in int4.notes)
    assert any("was left out" in note for note in both.notes)


def test_what_failed_in_one_run_is_taken_from_the_other(tmp_path, two):
    first = changed(two[0], "int8", status=FAILED, reason="out of memory", timing=None, quality=())
    second = ql.Comparison(two[0].workload, two[0].trials, two[0].images)
    both = merged(tmp_path, first, second)
    assert [t.status for t in both.trials] == ["ok", "ok"]
    assert any("out of memory" in note and "run-0" in note for note in both.notes)


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        ("prompts", ("a blue dog",), "prompts was"),
        ("steps", 4, "steps was 20, now 4"),
        ("dtype", "bfloat16", "dtype"),
        ("device", "cuda", "device was 'cpu', now 'cuda'"),
        ("model", "elsewhere", "model"),
    ],
)
def test_another_workload_is_refused(tmp_path, two, figure, value, said):
    first, second = two
    images = {
        (label, "a blue dog" if figure == "prompts" else prompt, seed): picture
        for (label, prompt, seed), picture in second.images.items()
    }
    workload = dataclasses.replace(second.workload, **{figure: value})
    other = dataclasses.replace(second, workload=workload, images=images)
    with pytest.raises(ArgumentError, match=said):
        merged(tmp_path, first, other)
    assert not (tmp_path / "both").exists()


def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(tmp_path, two):
    first, second = (
        dataclasses.replace(c, content=ModelContent(files={"a.safetensors": digest}))
        for c, digest in zip(two, ("one", "two"), strict=True)
    )
    with pytest.raises(ArgumentError, match=r"different models: other content in a\.safetensors"):
        merged(tmp_path, first, second)
    moved = dataclasses.replace(
        second,
        content=first.content,
        workload=dataclasses.replace(second.workload, model="/elsewhere/demo"),
    )
    journal.save(moved, tmp_path / "moved")
    both = ql.merge([tmp_path / "run-0", tmp_path / "moved"], tmp_path / "both")
    assert both.workload.model == "demo"


@pytest.mark.parametrize("what", ["weight_bytes", "pictures", "components"])
def test_trials_that_contradict_each_other_are_refused(tmp_path, two, what):
    first, second = two
    if what == "weight_bytes":
        second = changed(second, "none", weight_bytes=1)
    elif what == "components":
        second = changed(second, "int4", components=("transformer", "text_encoder"))
    else:
        other = {("none", "a red cat", 0): Image.new("RGB", (32, 32))}
        second = dataclasses.replace(second, images=dict(second.images) | other)
    with pytest.raises(ArgumentError, match=r"bytes|other pictures"):
        merged(tmp_path, first, second)


def test_an_unfinished_run_stays_unfinished(tmp_path, two):

    first, second = two
    journal.save(first, tmp_path / "a")
    rest = dataclasses.replace(second, trials=second.trials[:1])
    journal.save(rest, tmp_path / "b", second.trials)
    ql.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert [t.status for t in journal.read_asked(tmp_path / "both")] == ["ok", "ok", "asked"]


def test_folders_that_are_no_two_runs(tmp_path, two):
    journal.save(two[0], tmp_path / "a")
    with pytest.raises(ArgumentError, match="two runs or more, not 1"):
        ql.merge([tmp_path / "a"], tmp_path / "both")
    with pytest.raises(ArgumentError, match="twice"):
        ql.merge([tmp_path / "a", tmp_path / "." / "a"], tmp_path / "both")
    with pytest.raises(ModelNotFoundError):
        ql.merge([tmp_path / "a", tmp_path / "nowhere"], tmp_path / "both")
    with pytest.raises(ArgumentError, match="already holds"):
        ql.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "a")
    next((tmp_path / "a" / "images" / "int8").iterdir()).unlink()
    with pytest.raises(BrokenModelError, match=r"isn.t there"):
        ql.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert not (tmp_path / "both").exists()
