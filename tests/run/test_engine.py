"""`compare` from end to end on a tiny pipeline: rows, pictures, failures, resuming."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import zygote
from zygote import servers

import quantolab as ql
from quantolab.errors import ArgumentError, BrokenModelError, Cancelled, ModelNotFoundError
from quantolab.run.asked import check_request

FAST = {"steps": 2, "repeats": 2, "dtype": "float32"}  # which every processor does itself
PROMPTS = ("a red cat", "a blue dog")


def quietly(progress):
    """Watch nothing."""


@pytest.fixture(scope="module")
def comparison(pipeline_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    events = []
    result = ql.compare(
        pipeline_folder, None, PROMPTS, seeds=(0, 7), out=folder, watch=events.append, **FAST
    )
    return result, folder, events


def test_every_recipe_is_a_row(comparison):
    result, _, _ = comparison
    table = ql.results_table(result)
    assert list(table.recipe) == ["none", "float8", "int8", "int4", "int2"]
    assert (table.status == "ok").all()
    assert (table.weight_bytes == table.predicted_weight_bytes).all()
    assert table.weight_bytes.is_monotonic_decreasing
    assert (table.repeats == 2).all()
    assert (table.peak_bytes > table.weight_bytes).all()
    assert (table.file_bytes > table.weight_bytes).all()


def test_pictures_are_those_that_plain_diffusers_makes(comparison, pipeline_folder):
    """For the reference: same prompt, seed, steps and length of text give the same pixels."""
    import torch
    from diffusers import FluxPipeline

    result, _, _ = comparison
    pipe = FluxPipeline.from_pretrained(pipeline_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for (label, prompt, seed), picture in result.images.items():
        if label != "none":
            continue
        theirs = pipe(
            prompt,
            num_inference_steps=2,
            width=32,
            height=32,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert np.array_equal(np.asarray(picture), np.asarray(theirs))


def test_quality_falls_with_precision(comparison):
    table = ql.results_table(comparison[0]).set_index("recipe")
    psnr = table.psnr_db
    assert np.isnan(psnr["none"])
    assert min(psnr["float8"], psnr["int8"]) > psnr["int4"] > psnr["int2"]


def test_all_files_are_there(comparison):
    result, folder, _ = comparison
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    tops = {"results.csv", "results.parquet", "results.md", "run.json", "grid.png", "tradeoff.png"}
    assert tops <= names
    assert len([n for n in names if n.startswith("images/")]) == 5 * 4
    assert len(names) == len(tops) + 20  # nothing else was left behind
    again = ql.load_comparison(folder)
    assert again.trials == result.trials


def test_run_json_tells_the_conditions(comparison):
    _, folder, _ = comparison
    run = json.loads((folder / "run.json").read_text())
    assert run["finished"] is True
    assert run["overhead"] == pytest.approx(run["wall_seconds"] / run["generation_seconds"])
    trial = run["trials"][2]
    assert len(trial["timing"]["samples"]) == 2
    assert len(trial["timing"]["warmup"]) == 4
    assert {"device_name", "threads", "torch", "diffusers", "quanto"} <= trial["conditions"].keys()


def test_events_tell_how_far_it_is(comparison):
    _, _, events = comparison
    assert events[0].stage == "starting"
    assert events[-1].stage == "finished"
    assert events[-1].done == events[-1].total == 5 * (4 + 2)
    assert [e.trial.label for e in events if e.trial] == ["none", "float8", "int8", "int4", "int2"]
    done = [e.done for e in events]
    assert done == sorted(done)
    # tests/run/test_session.py holds the arithmetic of the seconds to go; here, when there are any.
    assert all((e.eta_seconds is not None) == (e.done > 1) for e in events)
    assert events[-1].eta_seconds == 0


def test_several_components_and_skips(pipeline_folder):
    both = ("transformer", "text_encoder_2")
    recipe = ql.Recipe("int8", ("proj_out", "text_encoder_2.*.k"), both)
    result = ql.compare(pipeline_folder, ["none", recipe], PROMPTS[0], watch=quietly, **FAST)
    assert [t.status for t in result.trials] == ["ok", "ok"], result.trials
    for trial in result.trials:
        assert trial.weight_bytes == trial.predicted_weight_bytes
    # The reference counts the same components, so that the two figures can be compared.
    assert result.trials[0].weight_bytes > 1.5 * result.trials[1].weight_bytes
    kept = result.trials[1].kept_layers
    assert "transformer.proj_out" in kept
    assert any(name.startswith("text_encoder_2.") and name.endswith(".k") for name in kept)


def test_a_killed_trial_is_a_row_and_resume_does_only_that(pipeline_folder, tmp_path):
    killed = []

    def strike(progress):
        if progress.label == "int8" and progress.stage == "timing" and not killed:
            jobs = [job for server in servers() for job in server.children()]
            killed.extend(sorted(jobs, key=lambda job: job.create_time()))
            killed[1].kill()  # reference, int8 and int2 are all alive

    recipes = ["none", "int8", "int2"]
    arguments = {"steps": 2, "repeats": 8, "dtype": "float32", "out": tmp_path / "run"}
    first = ql.compare(pipeline_folder, recipes, PROMPTS[0], watch=strike, **arguments)
    assert [t.status for t in first.trials] == ["ok", "failed", "ok"]
    assert "was killed (SIGKILL)" in first.trials[1].reason
    assert first.trials[1].timing is None
    assert [len(t.timing.samples) for t in (first.trials[0], first.trials[2])] == [8, 8]
    assert len(list((tmp_path / "run" / "images" / "int8").iterdir())) == 1  # kept
    ran = []
    second = ql.compare(
        pipeline_folder,
        recipes,
        PROMPTS[0],
        resume=True,
        watch=lambda p: p.trial and ran.append(p.trial.label),
        **arguments,
    )
    assert ran == ["int8"]
    assert [t.status for t in second.trials] == ["ok", "ok", "ok"]
    assert second.trials[2] == first.trials[2]
    reference, int8 = second.trials[0].timing, second.trials[1].timing
    assert reference.samples[:8] == first.trials[0].timing.samples
    assert reference.rounds == tuple(range(16))  # in new rounds together
    assert int8.rounds == tuple(range(8, 16))


def test_a_picture_that_is_no_number_fails_its_trial_only(pipeline_folder, tmp_path):
    """A VAE with an overflowing weight gives NaN pictures: a row with that reason."""
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(pipeline_folder, broken)
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"].fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    result = ql.compare(broken, ["none", "int8"], PROMPTS[0], watch=quietly, **FAST)
    assert [t.status for t in result.trials] == ["failed", "failed"]
    assert "NaN" in result.trials[0].reason
    assert result.images == {}
    assert np.isnan(ql.results_table(result).latency_seconds).all()


def test_truncated_weights_fail_with_the_file_named(pipeline_folder, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(pipeline_folder, broken)
    path = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    result = ql.compare(broken, ["int8"], PROMPTS[0], watch=quietly, **FAST)
    assert result.trials[0].status == "failed"
    assert "can't be read as safetensors" in result.trials[0].reason


def test_cancel_keeps_what_is_done(pipeline_folder, tmp_path):
    cancel = threading.Event()

    def stop(progress):
        if progress.label == "int8" and progress.stage == "timing":
            cancel.set()

    with pytest.raises(Cancelled):
        ql.compare(
            pipeline_folder,
            ["none", "int8"],
            PROMPTS[0],
            steps=2,
            repeats=200,
            dtype="float32",
            out=tmp_path,
            watch=stop,
            cancel=cancel,
        )
    kept = ql.load_comparison(tmp_path)
    assert [(t.label, t.status) for t in kept.trials] == [("none", "ok"), ("int8", "ok")]
    assert all(len(t.timing.samples) < 200 for t in kept.trials)


# SIGKILL always, as in tests/run/test_kills.py; what a user does besides is here.
SWEPT = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.sweep) for number in SWEPT)],
)
def test_a_run_that_is_cut_can_be_resumed(pipeline_folder, tmp_path, number):
    command = [
        sys.executable, "-m", "quantolab", "compare", str(pipeline_folder), "--weights",
        "none,int4", "--prompt", "a red cat", "--steps", "2", "--repeats", "12", "--dtype",
        "float32", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    theirs = {k: v for k, v in os.environ.items() if k != zygote.PLACE}  # all its family its own
    run = subprocess.Popen(
        command, env=theirs, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    record = tmp_path / "run" / "run.json"
    while not (record.is_file() and json.loads(record.read_text())["trials"]):
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    time.sleep(random.Random(number).uniform(0, 0.4))
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert run.returncode == 128 + number
        assert said.rstrip().endswith("--resume finishes it")
    psutil.wait_procs(family, timeout=20)
    assert not any(p.is_running() for p in family)
    before = json.loads(record.read_text())
    if number in (signal.SIGTERM, signal.SIGHUP):  # they end it as SIGINT does
        assert not before["finished"]
        return
    ql.compare(  # not by the command line, which would start a server of its own
        pipeline_folder, ["none", "int4"], "a red cat", steps=2, repeats=12, dtype="float32",
        out=tmp_path / "run", resume=True, watch=quietly,
    )  # fmt: skip
    after = json.loads(record.read_text())
    assert after["finished"]
    assert [t["recipe"]["weights"] for t in after["trials"]] == ["none", "int4"]
    for earlier, trial in zip(before["trials"], after["trials"], strict=False):
        kept = len(earlier["timing"]["samples"])  # not done again, rounds are added
        assert trial["timing"]["samples"][:kept] == earlier["timing"]["samples"]
        assert {**trial, "timing": None} == {**earlier, "timing": None}
    assert all(len(trial["timing"]["samples"]) >= 12 for trial in after["trials"])
    assert after["wall_seconds"] > before["wall_seconds"]
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipes": ["int5"]}, ArgumentError, "did you mean 'int8'"),
        ({"recipes": []}, ArgumentError, "recipes is empty"),
        ({"recipes": ["int8", "int8"]}, ArgumentError, "more than once"),
        ({"recipes": [ql.Recipe("int8", (), ("transformr",))]}, ArgumentError, "'transformer'"),
        ({"prompts": []}, ArgumentError, "prompts must be one or more texts"),
        ({"seeds": ()}, ArgumentError, "seeds is empty"),
        ({"seeds": (-1,)}, ArgumentError, "seed must be a whole number of 0 or more"),
        ({"steps": 0}, ArgumentError, "steps must be a whole number of 1 or more, not 0"),
        ({"repeats": 0}, ArgumentError, "repeats must be a whole number of 1 or more"),
        ({"guidance": float("nan")}, ArgumentError, "guidance must be a number"),
        ({"size": (33, 32)}, ArgumentError, r"multiples of 2; did you mean 32x32\?"),
        ({"size": (0, 32)}, ArgumentError, "multiples of 2"),
        ({"dtype": "bf16"}, ArgumentError, "did you mean 'bfloat16'"),
        ({"device": "gpu"}, ArgumentError, "allowed: auto, cpu, cuda, mps, xpu"),
        ({"model": "dmeo"}, ModelNotFoundError, "did you mean 'demo'"),
        ({"model": "/nowhere/at/all"}, ModelNotFoundError, "no folder here"),
        ({"model": "/tmp"}, BrokenModelError, "no model in Diffusers layout"),
        ({"model": "nobody/nothing"}, ModelNotFoundError, "isn't in the local cache"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(pipeline_folder, changes, error, message):
    arguments = {"model": pipeline_folder, "prompts": "a red cat", **changes}
    with pytest.raises(error, match=message):
        check_request(**arguments)


def test_bad_skips_and_devices_write_nothing(pipeline_folder, tmp_path):
    out = tmp_path / "out"
    for recipe, device, message in [
        (ql.Recipe("int8", "proj_ot"), "cpu", "did you mean 'proj_out'"),
        (ql.Recipe("int8"), "xpu", "finds only: cpu"),
    ]:
        with pytest.raises(ql.QuantolabError, match=message):
            ql.compare(pipeline_folder, [recipe], "a", device=device, out=out, watch=quietly)
    assert not out.exists()


def test_other_recipes_are_added_to_a_run(pipeline_folder, tmp_path):
    """Nothing finished ever leaves a run, whatever it is gone on with."""
    arguments = {"out": tmp_path / "run", "watch": quietly, **FAST}
    first = ql.compare(pipeline_folder, ["none", "int8"], PROMPTS[0], **arguments)
    ran = []
    more = {**arguments, "watch": lambda p: p.trial and ran.append(p.trial.label)}
    second = ql.compare(pipeline_folder, ["none", "int2"], PROMPTS[0], resume=True, **more)
    assert ran == ["int2"]
    assert [t.label for t in second.trials] == ["none", "int8", "int2"]
    assert second.trials[1] == first.trials[1]
    assert dataclasses.replace(second.trials[0], timing=first.trials[0].timing) == first.trials[0]
    assert second.trials[0].timing.samples[:2] == first.trials[0].timing.samples
    assert second.trials[2].quality
    assert second.trials[2].timing.rounds == second.trials[0].timing.rounds[2:]  # together
    third = ql.compare(pipeline_folder, ["int8"], PROMPTS[0], resume=True, **arguments)
    assert third.trials == second.trials
    assert ql.load_comparison(tmp_path / "run").trials == second.trials


def test_kept_trials_are_judged_when_the_reference_comes_later(pipeline_folder, tmp_path):
    arguments = {"out": tmp_path / "run", "watch": quietly, **FAST}
    first = ql.compare(pipeline_folder, ["int8", "int2"], PROMPTS[0], **arguments)
    assert not any(trial.quality for trial in first.trials)
    recipes = ["int8", "int2", "none"]
    second = ql.compare(pipeline_folder, recipes, PROMPTS[0], resume=True, **arguments)
    assert [bool(trial.quality) for trial in second.trials] == [True, True, False]
    at_once = ql.compare(pipeline_folder, recipes, PROMPTS[0], watch=quietly, **FAST)
    assert [t.quality for t in second.trials] == [t.quality for t in at_once.trials]


def test_a_failed_trial_stays_a_row_while_others_are_added(pipeline_folder, tmp_path):
    arguments = {"out": tmp_path / "run", "watch": quietly, **FAST}
    ql.compare(pipeline_folder, ["none"], PROMPTS[0], **arguments)
    path = tmp_path / "run" / "run.json"
    values = json.loads(path.read_text())
    failed = {"recipe": {"weights": "int4", "skip": [], "components": []}, "compiled": False}
    values["asked"].append(failed)
    values["trials"].append({**failed, "status": "failed", "reason": "it was killed"})
    path.write_text(json.dumps(values))
    added = ql.compare(pipeline_folder, ["none", "int2"], PROMPTS[0], resume=True, **arguments)
    assert [t.status for t in added.trials] == ["ok", "failed", "ok"]
    again = ql.compare(pipeline_folder, ["int4"], PROMPTS[0], resume=True, **arguments)
    assert [t.status for t in again.trials] == ["ok", "ok", "ok"]


def test_pictures_that_are_gone_are_said_and_made_again(pipeline_folder, tmp_path):
    arguments = {"out": tmp_path / "run", "watch": quietly, **FAST}
    ql.compare(pipeline_folder, ["none", "int8"], PROMPTS[0], **arguments)
    shutil.rmtree(tmp_path / "run" / "images" / "int8")
    partly = ql.compare(pipeline_folder, ["none"], PROMPTS[0], resume=True, **arguments)
    assert (partly.trials[1].status, partly.trials[1].reason) == ("failed", "its pictures are gone")
    whole = ql.compare(pipeline_folder, ["none", "int8"], PROMPTS[0], resume=True, **arguments)
    assert [t.status for t in whole.trials] == ["ok", "ok"]


def test_trials_that_count_other_components_are_not_mixed(pipeline_folder, tmp_path):
    arguments = {"out": tmp_path / "run", "watch": quietly, **FAST}
    ql.compare(pipeline_folder, ["none"], PROMPTS[0], **arguments)
    recipe = ql.Recipe("int8", components=("text_encoder_2",))
    with pytest.raises(ArgumentError, match="quantize text_encoder_2 too"):
        ql.compare(pipeline_folder, [recipe], PROMPTS[0], resume=True, **arguments)


@pytest.mark.parametrize("names", [("text_encoder",), ("text_encoder", "text_encoder_2")])
def test_text_encoders_alone(pipeline_folder, names):
    recipes = ["none", ql.Recipe("int8", components=names)]
    done = ql.compare(pipeline_folder, recipes, PROMPTS[0], watch=quietly, **FAST)
    assert [t.status for t in done.trials] == ["ok", "ok"], done.trials
    none, int8 = done.trials
    assert int8.components == names
    assert none.weight_bytes > int8.weight_bytes == int8.predicted_weight_bytes
    assert len(done.images) == 2
