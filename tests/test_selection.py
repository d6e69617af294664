"""Which tests an expression for ``-m`` selects: the heavy ones where it names them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

FILES = {
    "quick": "def test_quick():\n    pass\n",
    "long": "@pytest.mark.long\ndef test_long():\n    pass\n",
    "heavy": "".join(
        f"@pytest.mark.{name}\ndef test_{name}():\n    pass\n\n"
        for name in ("kills", "mutations", "sweep")
    )
    + "@pytest.mark.sweep\n@pytest.mark.kills\ndef test_both():\n    pass\n",
}


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A function that returns the names of the tests that an expression selects."""
    folder = tmp_path_factory.mktemp("selection")
    (folder / "pyproject.toml").write_text((HERE.parent / "pyproject.toml").read_text())
    (folder / "tests").mkdir()
    (folder / "tests/conftest.py").write_text((HERE / "conftest.py").read_text())
    for name, text in FILES.items():
        (folder / f"tests/test_{name}.py").write_text(f"import pytest\n\n\n{text}")

    def select(*words: str) -> set[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if "::" in line]
        assert lines or done.returncode == 5, done.stdout + done.stderr
        return {line.partition("::test_")[2] for line in lines}

    return select


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (None, {"quick", "long"}),
        ("", {"quick", "long"}),
        ("quick", {"quick"}),
        ("not browser", {"quick", "long"}),
        ("quick and not browser", {"quick"}),
        ("kills", {"kills"}),
        ("kills or not kills", {"quick", "long", "kills"}),
        ("not kills", {"quick", "long"}),
        ("sweep or mutations", {"sweep", "mutations"}),
        ("sweep and kills", {"both"}),
        (
            "kills or mutations or sweep or quick",
            {*["quick", "kills", "mutations", "sweep", "both"]},
        ),
        ("not (kills or sweep)", {"quick", "long"}),
    ],
)
def test_heavy_tests_are_run_where_they_are_named(selected, expression, names):
    assert selected(*([] if expression is None else ["-m", expression])) == names
