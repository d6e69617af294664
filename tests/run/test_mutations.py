"""Run folders that were tampered with or cut: refused in a sentence, nothing outside touched."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import quantolab as ql
from quantolab.report.files import write_report
from quantolab.run import journal
from quantolab.run.asked import check_request
from quantolab.run.engine import _with_earlier
from quantolab.run.identity import ContentWatch
from quantolab.widgets.exploring import explorer
from quantolab.widgets.take_away import FILES, export

ODD = (
    None, True, -1, 0, 1e308, 10**30, "", "x", "../../outside", "a" * 5000, "\0", "\ud800", [], {},
    [[]], [None], {"a": 1}, "nan", "inf", "<img src=x onerror=alert(1)>", "\x1b[2J", float("nan"),
    float("inf"), -10**9, -0.5, 2**63, 2**64, 10**400, 10**9, "none", "Infinity",
)  # fmt: skip
WORKLOAD = {"prompts": "a red cat", "steps": 1, "repeats": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def small_run(pipeline_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutations") / "run"
    recipes = ["none", "int2"]
    ql.compare(pipeline_folder, recipes, out=folder, watch=lambda progress: None, **WORKLOAD)
    return folder


def mutated(folder: Path, outside: Path, number: int) -> str:
    """Change one thing in a run folder, the same for the same number; return what."""
    dice = random.Random(number)
    kind = dice.choice(["value", "value", "value", "value", "key", "bytes", "cut", "gone", "link"])
    if kind in ("value", "key"):
        return _change_record(folder / "run.json", dice, kind)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = dice.choice(files if dice.random() < 0.7 else [p for p in files if p.suffix == ".png"])
    data = path.read_bytes()
    if kind == "bytes":
        place = dice.randrange(len(data))
        path.write_bytes(data[:place] + dice.randbytes(8) + data[place + 8 :])
    elif kind == "cut":
        path.write_bytes(data[: dice.randrange(len(data))])
    elif kind == "gone":
        path.unlink()
    else:
        path = dice.choice([path, path.parent if path.parent != folder else path])
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(dice.choice([outside, outside / "precious", Path("/dev/zero"), path]))
    return f"{kind} {path.relative_to(folder)}"


def _change_record(path: Path, dice: random.Random, kind: str) -> str:
    values = json.loads(path.read_text())
    place, names = values, []
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = dice.choice(list(keys))
        names.append(key)
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or dice.random() < 0.25:
            break
        place = inner
    odd = copy.deepcopy(dice.choice(ODD))
    if kind == "value":
        place[key] = odd
    elif dice.random() < 0.5:
        del place[key]
    elif isinstance(place, list):
        place.append(copy.deepcopy(inner))
    else:
        place["x"] = place.pop(key)
    path.write_text(json.dumps(values))
    return f"{kind} {'.'.join(map(str, names))} = {odd!r}"


def opened(folder: Path, model: Path, out: Path) -> None:
    """Do all that opens a run folder and runs nothing."""
    comparison = ql.load_comparison(folder)
    table = ql.results_table(comparison)
    table.to_json()
    comparison.reference, comparison.overhead, repr(comparison)
    ql.save_comparison(comparison, out)
    write_report(comparison, folder)
    panel = explorer(run=folder)
    try:
        assert panel.comparison is not None
        panel.table.to_json()
    finally:
        panel.close()
    for kind in FILES:  # the zip is of the folder as it is
        export(kind, comparison, out)


def resumed(folder: Path, model: Path) -> None:
    """Do what `--resume` does before and after the trials."""
    request = _with_earlier(check_request(model, ["none", "int2"], **WORKLOAD), folder)
    watch = ContentWatch(request.source)
    watch.begin()
    watch.wait(60)
    trials = request.trials
    book = journal.Journal(folder, request.workload, trials, resume=True, content=watch.content)
    try:
        book.write(1.0)
    finally:
        book.close()


def state(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@contextmanager
def a_limit(seconds: int) -> Iterator[None]:
    """Let nothing hang: raise after so many seconds, whatever Python does meanwhile."""

    def over(number, frame):
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(small_run, model, tmp_path, number) -> None:
    outside, folder = tmp_path / f"outside-{number}", tmp_path / f"run-{number}"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    for do in ("open", "resume"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(small_run, folder)
        what = mutated(folder, outside, number)
        try:
            with a_limit(30):
                if do == "open":
                    opened(folder, model, tmp_path / f"out-{number}")
                else:
                    resumed(folder, model)
        except ql.QuantolabError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{number}, {do}: {what}: {type(error).__name__}") from error
        assert state(outside) == {"precious": hashlib.sha256(b"mine").hexdigest()}, what


@pytest.mark.parametrize("number", range(3))
def test_a_mutated_run_folder_gets_a_sentence(small_run, pipeline_folder, tmp_path, number):
    tried(small_run, pipeline_folder, tmp_path, number)


@pytest.mark.mutations
@pytest.mark.parametrize("number", range(3, 300))
def test_every_mutated_run_folder_gets_a_sentence(small_run, pipeline_folder, tmp_path, number):
    tried(small_run, pipeline_folder, tmp_path, number)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run["trials"][1].update(weight_bytes=-5), "weight_bytes must be a finite"),
        (lambda run: run["trials"][1].update(load_seconds=float("nan")), "load_seconds must be"),
        (lambda run: run["trials"][1]["timing"]["samples"].append(float("inf")), "a timing must"),
        (lambda run: run["trials"][1]["timing"].update(other_load=10**400), "64 bits"),
        (lambda run: run["trials"][1]["quality"][0].update(ssim=7.0), "no pictures have this"),
        (lambda run: run["trials"][1]["quality"][0].update(psnr_db=-1e9), "no pictures have this"),
        (lambda run: run["trials"][1]["quality"][0].update(psnr_db=1e300), "no pictures have this"),
        (lambda run: run["trials"][1]["quality"][0].update(flip=2), "no pictures have this"),
        (lambda run: run["floor"][0].update(psnr_db=-1e9), "floor: no pictures have this"),
        (lambda run: run["trials"].append(run["trials"][1]), "trials names one of them twice"),
        (lambda run: run["workload"].update(seeds=[2**64]), "seeds.0. must be a whole number of"),
        (lambda run: run["workload"].update(seeds=[-1]), "seeds must be 0 or more"),
        (lambda run: run["workload"].update(seeds=[0, 0]), "seeds names one of them twice"),
        (lambda run: run["workload"].update(size=[10**9, 32]), "size must be from 1 to"),
        (lambda run: run["workload"].update(steps=0), "steps must be from 1 to"),
        (lambda run: run["workload"].update(guidance=float("nan")), "guidance must be a finite"),
        (lambda run: run.update(wall_seconds=-1), "wall_seconds must be a finite"),
    ],
)
def test_figures_that_make_no_sense_are_refused_at_every_door(small_run, tmp_path, change, said):
    folder = shutil.copytree(small_run, tmp_path / "run")
    values = json.loads((folder / "run.json").read_text())
    change(values)
    (folder / "run.json").write_text(json.dumps(values))
    for opens in (ql.load_comparison, journal.read_asked, lambda run: explorer(run=run)):
        with pytest.raises(ql.QuantolabError, match=said):
            opens(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"trials":' * 100_000, "", "null", "\0"])
def test_a_record_that_is_no_record_gets_a_sentence(small_run, tmp_path, text):
    folder = shutil.copytree(small_run, tmp_path / "run")
    (folder / "run.json").write_text(text)
    for opens in (ql.load_comparison, journal.read_asked, lambda run: explorer(run=run)):
        with pytest.raises(ql.QuantolabError, match=r"run\.json"):
            opens(folder)
