"""Run folders that were tampered with or cut: refused in a sentence, nothing outside touched."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

import quantolab as ql
from quantolab.report.files import write_report
from quantolab.run import journal
from quantolab.run.asked import check_request
from quantolab.run.engine import _with_earlier
from quantolab.run.identity import ContentWatch

ODD = (
    None, True, -1, 0, 1e308, 10**30, "", "x", "../../outside", "a" * 5000, "\0", "\ud800", [], {},
    [[]], [None], {"a": 1}, "nan", "inf", "<img src=x onerror=alert(1)>", "\x1b[2J", float("nan"),
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


def tried(small_run, model, tmp_path, number) -> None:
    outside, folder = tmp_path / f"outside-{number}", tmp_path / f"run-{number}"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    for do in ("open", "resume"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(small_run, folder)
        what = mutated(folder, outside, number)
        try:
            if do == "open":
                opened(folder, model, tmp_path / f"out-{number}")
            else:
                resumed(folder, model)
        except ql.QuantolabError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{number}, {do}: {what}: {type(error).__name__}") from error
        assert state(outside) == {"precious": hashlib.sha256(b"mine").hexdigest()}, what


@pytest.mark.parametrize("number", range(12))
def test_a_mutated_run_folder_gets_a_sentence(small_run, pipeline_folder, tmp_path, number):
    tried(small_run, pipeline_folder, tmp_path, number)


@pytest.mark.mutations
@pytest.mark.parametrize("number", range(12, 300))
def test_every_mutated_run_folder_gets_a_sentence(small_run, pipeline_folder, tmp_path, number):
    tried(small_run, pipeline_folder, tmp_path, number)
