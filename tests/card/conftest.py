"""A card for machines without one; what it is, and isn't, ``card_of_tests.py`` says."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import zygote


@dataclass(frozen=True)
class TestCard:
    """One that child processes find, and what they log."""

    __test__ = False
    folder: Path
    environment: dict[str, str]

    def run(self, script: str) -> str:
        """Run a script that finds the card, under the name ``card`` too; return what it prints."""
        said = self.folder / "said"
        said.unlink(missing_ok=True)
        code = zygote.run_script(script, self.environment, said, seconds=240)
        text = said.read_text()
        assert code == 0, text
        return text

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line of quantolab; its child processes find the card."""
        return zygote.run_command(*words, environment=self.environment)

    @property
    def log(self) -> list[dict]:
        """What child processes did: stages, and how full each device was."""
        file = self.folder / "log.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="session")
def test_card(tmp_path_factory):
    """Return a function that makes a card of so many bytes, one for each device."""

    def make(*sizes: int, context: int = 0, **more: int) -> TestCard:
        folder = tmp_path_factory.mktemp("card")
        said = {"bytes": sizes, "context": context, "folder": str(folder), **more}
        return TestCard(folder, {**os.environ, "QUANTOLAB_TEST_CARD": json.dumps(said)})

    return make
