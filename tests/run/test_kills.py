"""Whatever is killed, and whenever: `--resume` gives the table and pictures of an undisturbed run.

25 kills, over every victim and moment, with ``-m kills``. One of each victim is tried always: the
parent and a job in tests/run/test_engine.py, the server in tests/processes/test_children.py.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import quantolab as ql

VICTIMS = ("parent", "server", "job")
# What the disk shows when a moment has come, under TMPDIR and the run's folder, and within how
# many seconds after it the kill comes.
MOMENTS = {
    "planning": ("tmp/quantolab-plan-*", 0.6),
    "encoding": ("run/.work/encode/log.txt", 0.3),
    "timing": ("run/.work/trial-*/images/000.png", 0.4),
    "writing": ("run/.work/trial-*/result.json", 0.04),
}
FIGURES = (
    "recipe", "status", "reason", "weight_bytes", "predicted_weight_bytes", "file_bytes",
    "quality", "kept_layers", "notes", "components", "picture_size",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where one test's run goes, and what it runs."""

    folder: Path
    model: Path

    def begin(self, *more: str) -> subprocess.Popen[str]:
        (self.folder / "tmp").mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "quantolab", "compare", str(self.model), "--weights",
            "none,int2", "--prompt", "a red cat", "--steps", "2", "--repeats", "8", "--dtype",
            "float32", "--out", str(self.folder / "run"), *more,
        ]  # fmt: skip
        return subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(self.folder / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def whole(self, *more: str) -> tuple[list[dict], dict[str, bytes]]:
        """Run to the end and return what is `found`."""
        run = self.begin(*more)
        _, said = run.communicate(timeout=600)  # patience costs nothing
        assert run.returncode == 0, said
        return self.found()

    def found(self) -> tuple[list[dict], dict[str, bytes]]:
        """Return a finished run's table, timings aside, and the pictures' bytes."""
        record = json.loads((self.folder / "run" / "run.json").read_text())
        assert record["finished"]
        pictures = (self.folder / "run" / "images").rglob("*.png")  # plots hold timings
        return (
            [{name: trial[name] for name in FIGURES} for trial in record["trials"]],
            {str(p.relative_to(self.folder)): p.read_bytes() for p in pictures},
        )

    def left_over(self) -> list[str]:
        """Return what no run leaves: scratch folders, locks, parts of files."""
        hidden = [p for p in (self.folder / "run").rglob("*") if p.name.startswith(".")]
        return sorted(map(str, [*(self.folder / "tmp").iterdir(), *hidden]))


@pytest.fixture(scope="module")
def undisturbed(pipeline_folder, tmp_path_factory):
    """What a run gives that nobody kills; in this process, whose server other tests share."""
    place = Place(tmp_path_factory.mktemp("undisturbed"), pipeline_folder)
    (place.folder / "tmp").mkdir()
    ql.compare(
        pipeline_folder, ["none", "int2"], "a red cat", steps=2, repeats=8, dtype="float32",
        out=place.folder / "run", watch=lambda progress: None,
    )  # fmt: skip
    assert place.left_over() == []
    return place.found()


def find(victim: str, parent: psutil.Process) -> psutil.Process | None:
    """Return the process to kill, if it is there."""
    if victim == "parent":
        return parent
    try:
        found = parent.children()
        if victim == "job" and found:
            found = found[0].children()
    except psutil.NoSuchProcess:
        return None
    return found[0] if found else None


def wait_until(is_there: Callable[[], object], run: subprocess.Popen[str]) -> bool:
    """Wait until something is there; False if the run ended before."""
    while not is_there():
        if run.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def kill(place: Place, victim: str, moment: str, dice: random.Random) -> bool:
    """Begin a run, kill one of its processes, wait until all have ended; say whether it was hit."""
    run = place.begin()
    parent = psutil.Process(run.pid)
    pattern, within = MOMENTS[moment]
    wanted = dice.randint(1, 2) if moment in ("timing", "writing") else 1
    seen: set[Path] = set()  # a trial's files are gone again when the next begins

    def has_come() -> bool:
        seen.update(place.folder.glob(pattern))
        return len(seen) >= wanted

    family: list[psutil.Process] = []
    try:
        assert wait_until(has_come, run), run.communicate()
        time.sleep(dice.uniform(0, within))
        hit = wait_until(lambda: find(victim, parent), run)
        family = parent.children(recursive=True)
        find(victim, parent).kill()
        family += parent.children(recursive=True)
    except (psutil.NoSuchProcess, AttributeError):  # it has just ended: a moment like any other
        hit = False
    try:
        run.communicate(timeout=600)
    finally:
        run.kill()  # of a run that hangs nothing is left to other tests
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    return hit


def tried(undisturbed, model: Path, folder: Path, number: int) -> None:
    dice = random.Random(number)
    victim = VICTIMS[number % len(VICTIMS)]
    moment = list(MOMENTS)[number // len(VICTIMS) % len(MOMENTS)]
    place = Place(folder, model)
    hit = kill(place, victim, moment, dice)
    print(f"{victim} while {moment}: {'killed' if hit else 'had ended'}")
    assert place.whole("--resume") == undisturbed, (victim, moment)
    assert place.left_over() == [], (victim, moment)


@pytest.mark.kills
@pytest.mark.parametrize("number", range(25))
def test_kills_at_every_moment_change_nothing(
    undisturbed, pipeline_folder, tmp_path, number, real_servers
):
    tried(undisturbed, pipeline_folder, tmp_path, number)
