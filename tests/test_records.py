"""Records: there and back through JSON, and what is derived from raw observations."""

import dataclasses
import json
import math

import pytest

from quantolab.plain_values import from_dict, to_dict
from quantolab.recipes import Recipe
from quantolab.records import Comparison, Conditions, PictureQuality, Timing, Trial, Workload

WORKLOAD = Workload(
    model="demo", prompts=("a red circle", "a blue square"), seeds=(0, 7), steps=20,
    guidance=None, size=(128, 96), dtype="float32", device="cpu", repeats=3,
)  # fmt: skip
CONDITIONS = Conditions(
    device_name="AMD EPYC", threads=2, platform="Linux", python="3.12.1", torch="2.13.0",
    diffusers="0.42.1", transformers="5.1.0", quanto="0.2.7", peak_method="VmHWM",
)  # fmt: skip
FULL = Trial(
    recipe=Recipe("int4", ("proj_out",), ("transformer",)),
    status="ok", compiled=True, weight_bytes=1_000, predicted_weight_bytes=1_000,
    file_bytes=1_100, peak_bytes=9_000, load_seconds=0.5, compile_seconds=12.0,
    timing=Timing((0.2, 0.1, 0.3), (1.0,)),
    quality=(
        PictureQuality("a red circle", 0, 31.5, 0.9),
        PictureQuality("a red circle", 7, math.inf, 1.0),
    ),
    kept_layers=("transformer.proj_out",), notes=("a cure was applied",), conditions=CONDITIONS,
    components=("transformer",),
)  # fmt: skip


def through_json(record):
    """Return a record's plain values after a trip through strict JSON."""
    return json.loads(json.dumps(to_dict(record), allow_nan=False))


@pytest.mark.parametrize("trial", [FULL, Trial(Recipe("none"), "failed", "it was killed")])
def test_trials_survive_json(trial):
    assert from_dict(Trial, through_json(trial)) == trial
    assert hash(from_dict(Trial, through_json(trial))) == hash(trial)


@pytest.mark.parametrize(
    "workload",
    [WORKLOAD, dataclasses.replace(WORKLOAD, guidance=4.5, revision="abc123", prompts=("a",))],
)
def test_workloads_survive_json(workload):
    assert from_dict(Workload, through_json(workload)) == workload


def test_keys_of_later_versions_are_ignored():
    values = through_json(FULL) | {"invented_later": 1}
    values["timing"]["clock"] = "atomic"
    assert from_dict(Trial, values) == FULL


def test_files_of_earlier_versions_get_the_defaults():
    values = through_json(FULL)
    del values["components"], values["notes"]
    assert from_dict(Trial, values) == dataclasses.replace(FULL, components=(), notes=())


def test_pairs_have_prompts_outermost():
    assert WORKLOAD.pairs == (
        ("a red circle", 0), ("a red circle", 7), ("a blue square", 0), ("a blue square", 7),
    )  # fmt: skip


def test_labels():
    assert FULL.label == "transformer=int4 proj_out=none compiled"
    assert Trial(Recipe("none"), "ok").label == "none"


def test_total_time_counts_the_warm_up():
    assert FULL.timing.total == pytest.approx(1.6)


def test_the_reference_is_eager_and_ended_well():
    eager, compiled = Trial(Recipe("none"), "ok"), Trial(Recipe("none"), "ok", compiled=True)
    assert Comparison(WORKLOAD, (FULL, compiled, eager)).reference == eager
    assert Comparison(WORKLOAD, (FULL, compiled)).reference is None
    assert Comparison(WORKLOAD, (Trial(Recipe("none"), "failed", "killed"),)).reference is None


def test_overhead():
    assert Comparison(WORKLOAD, (FULL, FULL), wall_seconds=6.4).overhead == pytest.approx(2.0)
    assert Comparison(WORKLOAD, (FULL,)).overhead is None
    assert Comparison(WORKLOAD, (), wall_seconds=1.0).overhead is None
