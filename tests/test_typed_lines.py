"""Command lines as a shell runs them: what is typed by mistake, and pipes that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = [
    ("runs --csv /dev/full", 2, "can't be written: No space left on device"),
    ("compare --size 128x999999999", 2, "multiples of 16 up to"),
    ("compare --prompt $'\\xff\\xfe'", 2, "isn't text in UTF-8"),
    ("compare --prompts - <&-", 2, "the standard input is closed"),
    ("compare --prompts - < /dev/null", 2, "holds no line with words"),
    ("lab file", 2, "can't be copied"),
    ("runs | head -c 1", 0, ""),
    ("compare --help | head -n 1", 0, ""),
    ("plan demo --csv /dev/full", 2, "can't be written: No space left on device"),
    ("plan demo > /dev/full", 2, "can't be written: No space left on device"),
    ("plan demo --csv pipe", 2, "can't be written"),
    ("plan $'\\xff'", 2, "isn't text in UTF-8"),
    ("$'\\xff'", 2, "isn't text in UTF-8"),
    ("plan demo | head -n 1", 0, ""),
    ("plan demo >&-", 0, ""),
    ("plan demo 2>&-", 0, ""),
    ("plan nothing 2>&-", 2, ""),
    ("plan nothing >&- 2>&-", 2, ""),
    ("plan demo <&-", 0, ""),
    ("--help > /dev/full", 0, ""),
    ("plan demo --csv /dev/stdout", 0, ""),
    ("plan demo --csv >(cat)", 0, ""),
]


@pytest.fixture
def place(tmp_path):
    """A folder with a file and a pipe in it."""
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def of_shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which ``quantolab`` stands for this one."""
    script = f"set -o pipefail; {sys.executable} -m quantolab {line}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("line", "status", "said"), LINES[:7])
def test_lines_as_they_are_typed(line, status, said, place):
    _typed(line, status, said, place)


@pytest.mark.sweep
@pytest.mark.parametrize(("line", "status", "said"), LINES[7:])
def test_more_lines_as_they_are_typed(line, status, said, place):
    _typed(line, status, said, place)


def _typed(line: str, status: int, said: str, place: Path) -> None:
    before = {*place.rglob("*")}
    done = of_shell(line, place)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == (1 if said else 0), done.stderr
    assert {*place.rglob("*")} == before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_that_know_few_signs(encoding, place):
    done = of_shell("plan demo --weights 猫", place, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert "\\u732b" in done.stderr
