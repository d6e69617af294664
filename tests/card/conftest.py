"""A card for machines without one; what it is, and isn't, ``hook/card_of_tests.py`` says."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

HOOK = Path(__file__).parent / "hook"


@dataclass(frozen=True)
class TestCard:
    """One that child processes find, and what they log."""

    __test__ = False
    folder: Path
    environment: dict[str, str]
    forks: ForkServerContext

    def run(self, script: str) -> str:
        """Run a script that finds the card; return what it prints."""
        import preloaded  # found there by `forks`

        said = self.folder / "said"
        job = self.forks.Process(target=preloaded.run, args=(script, self.environment, said))
        job.start()
        job.join(240)
        if job.exitcode is None:
            job.kill()
        text = said.read_text()
        assert job.exitcode == 0, text
        return text

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line of quantolab; its child processes find the card."""
        return subprocess.run(
            [sys.executable, "-m", "quantolab", *words],
            env=self.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    @property
    def log(self) -> list[dict]:
        """What child processes did: stages, and how full each device was."""
        file = self.folder / "log.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _path() -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Where scripts are forked off a process that has imported torch, Diffusers and quantolab."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOOK)
        patch.setenv("PYTHONPATH", f"{HOOK}{os.pathsep}{_path()}")  # of the process itself
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["preloaded"])
        forkserver.ensure_running()
        patch.delenv("PYTHONPATH")
        yield context


@pytest.fixture(scope="session")
def test_card(tmp_path_factory, forks):
    """Return a function that makes a card of so many bytes, one for each device."""

    def make(*sizes: int, context: int = 0, **more: int) -> TestCard:
        folder = tmp_path_factory.mktemp("card")
        said = {"bytes": sizes, "context": context, "folder": str(folder), **more}
        environment = {
            **os.environ,
            "QUANTOLAB_TEST_CARD": json.dumps(said),
            "PYTHONPATH": f"{HOOK}{os.pathsep}{_path()}",
        }
        return TestCard(folder, environment, forks)

    return make
