"""The command line: exit statuses, one clear line for bad input, and what it prints."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from zygote import run_command

from quantolab import cli


def run_in_earnest(*arguments, cwd):
    command = [sys.executable, "-m", "quantolab", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_main_job_prints_and_writes(pipeline_folder, tmp_path):
    done = run_in_earnest(
        "compare", pipeline_folder, "--weights", "none,int8", "--skip", "proj_out",
        "--prompt", "a red cat", "--steps", 2, "--repeats", 3, "--seed", "1,2", "--seed", 3,
        "--size", "32x16", "--dtype", "float32", "--device", "cpu", "--guidance", 2.5,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folders = list((tmp_path / cli.RUNS).iterdir())
    assert len(folders) == 1
    table = pd.read_csv(folders[0] / "results.csv")
    assert list(table.recipe) == ["none", "int8 proj_out=none"]
    assert list(table["size"]) == ["32x16"] * 2
    assert list(table.seeds) == ["1, 2, 3"] * 2
    assert list(table.compute_dtype) == ["float32"] * 2
    assert "proj_out=none" in done.stdout  # a long name goes on in the next line
    for name in ("results.csv", "grid.png", "tradeoff.png", "run.json"):
        assert str(Path(cli.RUNS) / folders[0].name / name) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "--weights", "int9"], "did you mean 'int8'"),
        (["compare", "--weights", ","], "names no weights"),
        (["compare", "--steps", "0"], "steps must be a whole number of 1 or more, not 0"),
        (["compare", "--repeats", "0"], "repeats must be a whole number of 1 or more, not 0"),
        (["compare", "--steps", "few"], "a whole number is needed, not 'few'"),
        (["compare", "--size", "big"], "WIDTHxHEIGHT such as 512x512 is needed"),
        (["compare", "--size", "100x128"], "did you mean 96x128?"),
        (["compare", "--dtype", "fp16"], "allowed: bfloat16, float16, float32"),
        (["compare", "--device", "tpu"], "allowed: auto, cpu, cuda, mps, xpu"),
        (["compare", "no-such-folder"], "is no folder here"),
        (["compare", "--component", "transfromer"], "did you mean 'transformer'"),
        (["compare", "--weights", "none", "--skip", "x"], "nothing to quantize"),
        (["compare", "--resume"], "--resume needs --out FOLDER"),
        (["compare", "--wieghts", "int8"], "did you mean '--weights'"),
        (["plan"], "MODEL"),
        (["plan", "no-such-folder"], "is no folder here"),
        (["plan", "FLUX1-dev"], "did you mean 'FLUX.1-dev'"),
        (["plan", "FLUX.1-dev", "--vram", "big"], "a size such as 16GB"),
        (["plan", "FLUX.1-dev", "--weights", "int9"], "did you mean 'int8'"),
        (["plan", "FLUX.1-dev", "--component", "transfromer"], "did you mean 'transformer'"),
        (["plan", "FLUX.1-dev", "--csv", "no/such/folder.csv"], "no file in an existing folder"),
        (["lab", "--port", "http"], "a whole number is needed, not 'http'"),
        (["comapre"], "did you mean 'compare'"),
        (["doctro"], "allowed: compare, plan,"),
        (["compare", "--seed", "1,two"], "a whole number is needed, not 'two'"),
        (["compare", "--seed", "1,"], "a whole number is needed, not ''"),
        ([], "a command is needed: compare, plan,"),
    ],
)
def test_bad_arguments_get_one_line_and_status_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert said in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_dead_skip_pattern_gets_status_2_and_writes_nothing(pipeline_folder, tmp_path):
    done = run_command("compare", pipeline_folder, "--skip", "proj_uot", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'proj_out'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["compare", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "it is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_some_failed_is_status_1(pipeline_folder, tmp_path):
    path = next((pipeline_folder / "transformer").glob("*.safetensors"))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        done = run_command(
            "compare", pipeline_folder, "--weights", "int8", "--prompt", "a", "--steps", 1,
            "--repeats", 1, "--dtype", "float32", "--out", tmp_path / "out",
        )  # fmt: skip
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1
    assert "can't be read as safetensors" in " ".join(done.stdout.split())
    assert pd.read_csv(tmp_path / "out" / "results.csv").status.tolist() == ["failed"]


def test_plan_needs_no_weights_and_no_network(capsys, tmp_path):
    arguments = ["plan", "FLUX.1-dev", "--weights", "int8,int4", "--vram", "24GB"]
    assert cli.main([*arguments, "--csv", str(tmp_path / "plan.csv")]) == 0
    said = capsys.readouterr().out
    assert "fits into 25.8 GB with int8 (14.2 GB) or int4 (8.61 GB)." in said
    table = pd.read_csv(tmp_path / "plan.csv")
    rows = table[table.component == "transformer"]
    assert list(rows.weight_bytes) == [23_802_816_640, 11_910_627_552, 6_327_162_976]


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("quantolab 0.")
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    assert scripts == {"quantolab": "quantolab.cli:run_and_exit"}


def test_a_run_that_is_killed_before_it_writes_anything_is_resumed(pipeline_folder, tmp_path):
    words = (
        "compare", pipeline_folder, "--weights", "none", "--prompt", "a", "--steps", 1,
        "--repeats", 1, "--dtype", "float32", "--out", tmp_path / "run",
    )  # fmt: skip
    command = [sys.executable, "-m", "quantolab", *map(str, words)]
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run").exists():
            assert begun.poll() is None
            time.sleep(0.001)
    finally:
        begun.kill()
        begun.wait()
    assert not (tmp_path / "run" / "run.json").exists()
    done = run_command(*words, "--resume")
    assert done.returncode == 0, done.stderr
    refused = run_command(*words[:-1], tmp_path / "rnu", "--resume")
    assert refused.returncode == 2
    assert refused.stderr.endswith("begins there; did you mean 'run'?\n")
    assert not (tmp_path / "rnu").exists()


def test_nothing_of_the_current_folder_is_imported(tmp_path):
    """A model's folder may hold a torch.py of a stranger's; ``python -m`` looks there first."""
    for name in ("pandas", "json", "typing", "argparse", "dataclasses", "numpy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit(3)\n")
    done = run_in_earnest("runs", Path(__file__).parent / "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run-finished" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_a_text_encoder_alone_and_another_recipe_added(pipeline_folder, tmp_path):
    """What the command line offers as `compare` does, in this process."""
    asked = [
        "compare", str(pipeline_folder), "--component", "text_encoder", "--prompt", "a red cat",
        "--steps", "1", "--repeats", "1", "--dtype", "float32", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert cli.main([*asked, "--weights", "none,int8"]) == 0
    before = pd.read_csv(tmp_path / "run" / "results.csv", keep_default_na=False)
    assert cli.main([*asked, "--weights", "none,int2", "--resume"]) == 0
    after = pd.read_csv(tmp_path / "run" / "results.csv", keep_default_na=False)
    assert list(before.weights) == ["none", "int8"]
    assert list(after.weights) == ["none", "int8", "int2"]
    assert list(after.status) == ["ok"] * 3
    assert list(after.components) == ["", "text_encoder", "text_encoder"]
    assert list(after.psnr_db[:2]) == list(before.psnr_db)
