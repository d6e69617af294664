"""A card for machines without one; what it is, and isn't, ``hook/card_of_tests.py`` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HOOK = Path(__file__).parent / "hook"


@dataclass(frozen=True)
class TestCard:
    """One that child processes find, and what they log."""

    __test__ = False
    folder: Path
    environment: dict[str, str]

    def run(self, script: str) -> str:
        """Run a script that finds the card; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import card_of_tests\n"
             f"card = card_of_tests.insert()\n{script}"],
            env={**self.environment, "PYTHONPATH": f"{HOOK}{os.pathsep}{_path()}"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

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
def test_card(tmp_path_factory):
    """Return a function that makes a card of so many bytes, one for each device."""

    def make(*sizes: int, context: int = 0, **more: int) -> TestCard:
        folder = tmp_path_factory.mktemp("card")
        said = {"bytes": sizes, "context": context, "folder": str(folder), **more}
        environment = {
            **os.environ,
            "QUANTOLAB_TEST_CARD": json.dumps(said),
            "PYTHONPATH": f"{HOOK}{os.pathsep}{_path()}",
        }
        return TestCard(folder, environment)

    return make
