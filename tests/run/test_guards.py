"""What goes wrong beside a trial becomes a row, and a run is only gone on with as it was begun."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from tiny_pipelines import qwen_image
from zygote import servers

import quantolab as ql
from quantolab.errors import ArgumentError, UnsupportedError
from quantolab.models.source import read_source
from quantolab.processes.jobs import Desk
from quantolab.run.asked import check_request
from quantolab.run.child import encode
from quantolab.run.engine import run_comparison
from quantolab.run.jobs import Encoded, EncodeJob

FAST = {"prompts": "a red cat", "steps": 1, "repeats": 1, "dtype": "float32"}


def quietly(progress):
    """Watch nothing."""


@pytest.fixture
def model(pipeline_folder, tmp_path):
    """A model of the test's own, to be changed."""
    return shutil.copytree(pipeline_folder, tmp_path / "model")


@pytest.fixture
def run(model, tmp_path):
    """A function that compares, or goes on with, in one folder."""

    def compare(recipes, model=model, **changes):
        arguments = {"out": tmp_path / "run", "watch": quietly, **FAST, **changes}
        return ql.compare(model, recipes, **arguments)

    return compare


def change(path):
    """Change one byte of a file, and nothing else that a look at the folder would show."""
    data, before = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def struck(stage):
    """Return a watcher that kills the job of a stage."""

    def kill():
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for server in servers():
                for child in server.children():
                    with suppress(ProcessLookupError):
                        if os.getsid(child.pid) == child.pid:  # a job, which leads its session
                            child.kill()
                            return
            time.sleep(0.002)

    threads = []

    def watch(progress):
        if progress.stage == stage and not threads:
            threads.append(threading.Thread(target=kill))
            threads[0].start()

    return watch


@pytest.mark.parametrize(
    ("stage", "step"), [("planning", "planning"), ("encoding prompts", "encoding the prompts")]
)
def test_a_step_before_the_trials_that_is_killed_fails_each_of_them(run, stage, step):
    first = run(["none", "int8"], watch=struck(stage))
    assert [t.status for t in first.trials] == ["failed", "failed"]
    assert all(t.reason.startswith(f"{step}: the process was killed") for t in first.trials)
    second = run(["none", "int8"], resume=True)
    assert [t.status for t in second.trials] == ["ok", "ok"]
    assert second.trials[1].quality


def test_pictures_deleted_while_it_runs_fail_their_trial_alone(run, tmp_path):
    def delete(progress):
        if progress.label == "int8" and progress.stage == "making the pictures":
            shutil.rmtree(tmp_path / "run" / "images", ignore_errors=True)

    first = run(["none", "int8", "int2"], watch=delete)
    assert [(t.status, t.reason) for t in first.trials] == [
        ("failed", "its pictures are gone"),
        ("ok", None),
        ("ok", None),
    ]
    second = run(["none", "int8", "int2"], resume=True)
    assert all(t.ok for t in second.trials)
    assert [bool(t.quality) for t in second.trials] == [False, True, True]


def test_pictures_that_a_trial_lacks_fail_it_alone(run, tmp_path):
    def delete(progress):
        if progress.label == "none" and progress.done == 3:
            for made in (tmp_path / "run" / ".work").glob("trial-*/images/000.png"):
                made.unlink()

    done = run(["none", "int2"], seeds=(0, 1, 2, 3), watch=delete)
    assert [t.status for t in done.trials] == ["failed", "ok"]
    assert done.trials[0].reason.startswith("keeping the pictures: ")
    assert done.trials[0].weight_bytes is None


@pytest.mark.parametrize(
    "name",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        pytest.param("text_encoder_2/model.safetensors", marks=pytest.mark.sweep),
        pytest.param("scheduler/scheduler_config.json", marks=pytest.mark.sweep),
    ],
)
def test_another_model_is_not_mixed_in(run, model, name):
    run(["int2"])
    change(model / name)
    with pytest.raises(ArgumentError, match=f"of another model.*other content in {name}"):
        run(["int2", "none"], resume=True)


def test_where_a_model_lies_and_when_it_was_written_do_not_matter(run, model):
    run(["int2"])
    moved = shutil.copytree(model, model.with_name("moved"), copy_function=shutil.copyfile)
    added = run(["none"], model=moved, resume=True)
    assert [t.status for t in added.trials] == ["ok", "ok"]
    assert added.notes == ()


def test_a_model_that_is_changed_meanwhile_fails_the_trials_that_it_met(run, model):
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"

    def meddle(progress):
        if (progress.label, progress.stage) == ("int8", "making the pictures") and not changed:
            changed.append(change(path))

    changed = []
    done = run(["none", "int8", "int2"], watch=meddle)
    assert [t.status for t in done.trials] == ["ok", "failed", "failed"]
    assert "safetensors of the model was changed while the run went on" in done.trials[1].reason


def test_other_versions_are_told(run, tmp_path):
    run(["none"])
    path = tmp_path / "run" / "run.json"
    values = json.loads(path.read_text())
    other = {"torch": "2.0.0", "diffusers": "0.1.0", "transformers": "4.0.0", "quanto": "0.2.0"}
    values["trials"][0]["conditions"] |= {**other, "device_name": "another"}
    path.write_text(json.dumps(values))
    table = ql.results_table(run(["int2"], resume=True))
    for said in (*other.values(), "another"):
        assert f"the reference's {said}" in table.notes[1]
    assert table.notes[1].count(": PSNR and SSIM hold that difference too") == 1
    assert np.isnan(table.speedup[1])


@pytest.mark.parametrize(
    "values", [{"steps": 2}, {"prompts": "a blue dog"}, {"seeds": 7}, {"guidance": 2.0}]
)
def test_other_arguments_are_refused_before_any_process_starts(run, values):
    run(["int2"])
    stages = []
    with pytest.raises(ArgumentError, match=f"other arguments.*{next(iter(values))} was"):
        run(["none"], resume=True, watch=lambda p: stages.append(p.stage), **values)
    assert stages == []


@pytest.mark.parametrize("make", [None, qwen_image])
def test_sizes_are_those_of_the_pictures(pipeline_folder, tmp_path, make):
    folder = pipeline_folder
    if make is not None:
        make().save_pretrained(folder := tmp_path / "other")
    request = check_request(folder, ["int2"], size=(32, 32), **FAST)
    workload = dataclasses.replace(request.workload, size=(33, 33))  # they make 32x32 of it
    done = run_comparison(dataclasses.replace(request, workload=workload))
    table = ql.results_table(done)
    assert table["size"][0] == "32x32"
    assert "the pictures are 32x32, though 33x33 was asked for" in table.notes[0]


def test_encoding_shows_signs_of_life(pipeline_folder, tmp_path, monkeypatch):
    """Pipelines call nobody back while they encode, however long a large text encoder takes."""

    def slowly(*args, **kwargs):
        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            pass

    monkeypatch.setattr("quantolab.run.child.encode_ahead", slowly)
    events = []
    workload = check_request(pipeline_folder, ["int2"], **FAST).workload
    asked = EncodeJob(read_source("tiny", pipeline_folder), workload, tmp_path / "encoded")
    assert encode(asked, Desk(tmp_path, events.append)) == Encoded(False)
    assert "step" in {event.kind for event in events}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("WanPipeline", "makes videos: say how many frames .*; its own number is 81"),
        ("LTXPipeline", "makes videos: say how many frames .*; its own number is 161"),
        ("LattePipeline", "makes videos in a way of its own"),
        ("StableAudioPipeline", "makes sound"),
        ("StableDiffusionImg2ImgPipeline", "needs a picture"),
        ("FluxInpaintPipeline", "needs a picture"),
        ("StableVideoDiffusionPipeline", "needs a picture"),
        ("DDPMPipeline", "takes no prompt"),
    ],
)
def test_what_makes_no_pictures_from_text_is_told_before_anything_is_loaded(name, what):
    from quantolab.run.studio import check_pipeline

    with pytest.raises((UnsupportedError, ArgumentError), match=f"{name} {what}"):
        check_pipeline(name)


@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusionPipeline", "SanaPipeline"])
def test_frames_of_what_makes_pictures_are_refused(name):
    from quantolab.run.studio import check_pipeline

    with pytest.raises(ArgumentError, match="makes pictures, which have no frames; 5 were asked"):
        check_pipeline(name, 5)


def test_what_makes_pictures_from_text_is_not_refused():
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    from quantolab.run.studio import check_pipeline

    for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        check_pipeline(cls.__name__)


def test_a_stalled_trial_is_a_row(run):
    import signal

    def freeze(progress):
        if (progress.label, progress.stage) == ("int8", "making the pictures"):
            for server in servers():
                for job in server.children():
                    job.send_signal(signal.SIGSTOP)

    done = run(["int8", "int2"], repeats=30, stall=6.0, watch=freeze)
    assert [t.status for t in done.trials] == ["failed", "ok"], done.trials
    assert "without a sign of life" in done.trials[0].reason
    with pytest.raises(ArgumentError, match="stall must be seconds above 0"):
        run(["int8"], stall=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_compute_dtype_that_the_processor_lacks_is_told(run, dtype):
    from quantolab.devices import processor_computes

    done = run(["int8"], dtype=dtype, device="cpu")
    told = [note for note in done.notes if "--dtype float32" in note]
    assert bool(told) == (not processor_computes(dtype))
    assert all(f"doesn't compute in {dtype} by itself" in note for note in told)
