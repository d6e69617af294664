"""`quantolab doctor` without --paths: versions, devices, compilers, speeds; exit statuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from quantolab import cli
from quantolab.doctor import checkup, matrix
from quantolab.doctor.checkup import Checkup, check_up, speed_table, text_checkup
from quantolab.doctor.jobs import Extension, Hub, Machine
from quantolab.doctor.machine import time_alternating
from quantolab.doctor.tools import Tool, check_tools
from quantolab.doctor.versions import (
    BETWEEN,
    BROKEN,
    KNOWN,
    MISSING,
    NEWER,
    OLDER,
    OUTSIDE,
    TESTED,
    TRIED,
    Fault,
    check_versions,
    judge_version,
)


@pytest.fixture(scope="module")
def found():
    return check_up("cpu")


@pytest.mark.long
def test_this_machine_is_healthy(found):
    assert found.broken == ()


@pytest.mark.long
def test_text_names_versions_and_devices(found):
    text = text_checkup(found)
    assert metadata.version("torch") in text
    assert metadata.version("optimum-quanto") in text
    assert "cores" in text
    assert "int8 packed kernel" in text
    assert "ninja" in text
    # A stale lock's path stands on a line of its own, as long as it is.
    assert max(len(line) for line in text.splitlines() if not line.endswith("lock")) <= 100
    assert text.endswith("Nothing is broken.")


@pytest.mark.long
def test_every_dtype_is_timed(found):
    table = speed_table(found)
    assert len(table) == 3 * 5
    assert (table["seconds"] > 0).all()
    assert (table["kernel"].str.len() > 0).all()
    assert table[table["weights"] == "none"]["against"].isna().all()
    assert table[table["weights"] != "none"]["against"].notna().all()


FAULTS = (
    Fault("torch", "==2.14.*", "compiling: a made-up fault"),
    Fault("torch", "<2.5", "loading: another one"),
    Fault("numpy", ">=2", "torch: not this package"),
)


@pytest.mark.parametrize(
    ("found", "allowed", "state"),
    [
        ("2.13.0+cpu", ">=2.6,<3", TESTED),
        ("2.15.0+cu132", ">=2.6,<3", TESTED),
        ("2.6.0", ">=2.6,<3", TESTED),
        ("2.12.0", "", BETWEEN),
        ("2.13.1", ">=2.6,<3", BETWEEN),
        ("2.15.1", ">=2.6,<3", NEWER),
        ("2.99.0.dev1", ">=2.6,<3", NEWER),
        ("2.5.1", ">=2.5,<3", OLDER),
        ("2.5.1", ">=2.6,<3", OUTSIDE),
        ("3.0.0", ">=2.6,<3", OUTSIDE),
        ("2.14.1", ">=2.6,<3", BROKEN),
        ("2.4.0", ">=2.6,<3", BROKEN),  # outside as well, and this says why
        (None, ">=2.6,<3", MISSING),
    ],
)
def test_versions_are_judged(found, allowed, state):
    version = judge_version("torch", found, allowed, FAULTS)
    assert (version.state, version.ok) == (state, state in (TESTED, OLDER, BETWEEN, NEWER))
    assert bool(version.breaks) == (state == BROKEN)


def test_what_is_known_to_break_is_said(monkeypatch):
    version = judge_version("torch", "2.14.1", ">=2.6,<3", FAULTS)
    assert checkup._version_fault(version) == (
        "torch 2.14.1 is known to break compiling: a made-up fault (pip install 'torch>=2.6,<3')"
    )
    text = text_checkup(
        Checkup((version, judge_version("torch", "2.16.0", "")), check_tools(), None)
    )
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("  torch")}
    assert rows["2.14.1"].endswith("known broken") and rows["2.16.0"].endswith("newer than tested")
    monkeypatch.setattr("quantolab.doctor.versions._installed", lambda name: "0.0.1")
    assert all(not v.ok for v in check_versions() if v.name in {f.name for f in KNOWN})


def test_each_package_has_a_range():
    versions = {v.name: v for v in check_versions()}
    assert versions.keys() == TRIED.keys() >= {fault.name for fault in KNOWN}
    assert "<" in versions["torch"].allowed
    assert versions["python"].allowed.startswith(">=")


PROJECT = Path(__file__).resolve().parents[2]
FLOORS = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pandas", "ipywidgets")


@pytest.mark.parametrize("name", FLOORS)
def test_the_lowest_that_is_allowed_was_tried_and_the_readme_says_what_was(name):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == name)
    tried = sorted(map(Version, TRIED[name]))
    floors = [Version(part.version) for part in wanted.specifier if part.operator == ">="]
    assert floors == tried[:1]
    assert all(str(version) in wanted.specifier for version in tried)
    row = next(r for r in (PROJECT / "README.md").read_text().splitlines() if f"| {name} |" in r)
    assert row == f"| {name} | {tried[0]} | {tried[-1]} |"


def test_a_missing_tool_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert [tool.version for tool in check_tools()] == [None, None, None]
    text = text_checkup(Checkup((), check_tools(), None))
    assert "pip install ninja" in text
    assert "missing" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_an_import_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(checkup, "_IMPORTS", ("json", "no_such_library"))
    assert checkup._import_faults() == [
        "no_such_library can't be imported: ModuleNotFoundError: No module named 'no_such_library'"
    ]


def test_a_stale_lock_is_told():
    state = Extension("quanto_cpp", False, "/x/lock", "/x")
    assert "/x/lock" in checkup._extension(state)


class Device:
    """A device that does what it is asked when somebody waits for it, as accelerators do."""

    def __init__(self):
        self.now = self.queued = 0.0
        self.order = []

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.queued += seconds

        return run

    def wait(self):
        self.now += self.queued
        self.queued = 0.0

    def clock(self):
        return self.now


def test_calls_take_turns_and_each_is_waited_for():
    device = Device()
    calls = {"a": device.call("a", 1.0), "b": device.call("b", 3.0)}
    timings = time_alternating(calls, wait=device.wait, clock=device.clock)
    assert device.order[:6] == ["a", "b"] * 3
    assert set(timings["a"].samples) == {1.0}
    assert set(timings["b"].samples) == {3.0}


def test_what_was_asked_before_is_not_counted():
    device = Device()
    device.queued = 5.0
    timings = time_alternating({"a": device.call("a", 1.0)}, device.wait, device.clock)
    assert set(timings["a"].samples) == {1.0}


HEALTHY = Checkup((), (Tool("ninja", "1.11", "use", "how"),), None)


@pytest.mark.parametrize(("broken", "status"), [((), 0), (("torch is too old",), 1)])
def test_exit_status_of_the_checkup(monkeypatch, capsys, broken, status):
    state = dataclasses.replace(HEALTHY, broken=broken)
    monkeypatch.setattr(checkup, "check_up", lambda: state)
    assert cli.main(["doctor"]) == status
    said = capsys.readouterr().out
    assert all(fault in said for fault in broken)
    assert said.endswith("Which documented paths work: quantolab doctor --paths\n")


@pytest.mark.parametrize(
    ("outcome", "status"), [("works", 0), ("unsupported", 0), ("misleads", 1), ("fails", 1)]
)
def test_exit_status_of_the_matrix(monkeypatch, capsys, tmp_path, outcome, status):
    row = {"path": "load", "weights": "int8", "via": "quantolab", "outcome": outcome,
           "reason": "so it is", "device": "cpu", "dtype": "bfloat16", "torch": "1",
           "diffusers": "2", "transformers": "3", "quanto": "4"}  # fmt: skip
    machine = Machine("cpu", (), 2, None, {}, (), Hub("cache", False, True), ())
    state = dataclasses.replace(HEALTHY, machine=machine)
    monkeypatch.setattr(checkup, "check_up", lambda: state)
    monkeypatch.setattr(checkup, "text_checkup", lambda found: "fine")
    monkeypatch.setattr(matrix, "path_matrix", lambda weights: pd.DataFrame([row]))
    csv = tmp_path / "paths.csv"
    assert cli.main(["doctor", "--paths", "--csv", str(csv)]) == status
    assert pd.read_csv(csv).loc[0, "outcome"] == outcome
    said = capsys.readouterr().out
    assert outcome in said and "quantolab doctor --paths" not in said


def test_a_csv_that_cannot_be_written_is_refused_at_once(capsys, tmp_path):
    assert cli.main(["doctor", "--csv", str(tmp_path / "none" / "x.csv")]) == 2
    assert "no file in an existing folder" in capsys.readouterr().err


def test_help_is_light():
    code = (
        "import quantolab.cli, sys\n"
        "try: quantolab.cli.main(['doctor', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
