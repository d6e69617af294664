"""The documentation site: it builds without a warning, and what its pages say to type is right."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
from zygote import run_file

import quantolab as ql
from quantolab import cli, widgets
from quantolab.report.column_words import COLUMN_WORDS
from quantolab.report.tables import COLUMNS, EXTRA_COLUMNS

TOP = Path(__file__).parents[1]
PAGES = sorted((TOP / ".docs").glob("*.md"))


def blocks(language: str) -> list[str]:
    """Return every block of code of the pages in one language."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_site_builds_without_a_warning(tmp_path):
    done = run_file(TOP / ".docs/build.py", tmp_path / "site")
    assert (done.returncode, done.stderr) == (0, "")
    reference = (tmp_path / "site/reference.html").read_text(encoding="utf-8")
    assert all(f"quantolab.{name}" in reference for name in ql.__all__ if name != "__version__")
    start = (tmp_path / "site/notebooks/00_start_here.html").read_text(encoding="utf-8")
    assert "<img" in start and "ql-static" in start  # panels without a kernel
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', start)


def test_every_column_is_told():
    assert {*COLUMN_WORDS} == {*COLUMNS, *EXTRA_COLUMNS}
    assert all(said.endswith(".") for said in COLUMN_WORDS.values())


def test_the_commands_are_read():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("quantolab")]
    assert len(commands) > 3
    for command in commands:
        cli._parser().parse_args(command[1:])


CALLS = [
    node
    for block in blocks("python")
    for node in ast.walk(ast.parse(block))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and isinstance(node.func.value, ast.Name)
    and node.func.value.id in ("ql", "widgets")
]


@pytest.mark.parametrize("node", CALLS, ids=[ast.unparse(node.func) for node in CALLS])
def test_the_calls_are_such_as_can_be_made(node):
    home = {"ql": ql, "widgets": widgets}[node.func.value.id]
    values = [ast.unparse(argument) for argument in node.args]
    named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    signature = inspect.signature(getattr(home, node.func.attr))
    bound = signature.bind(*values, **named)
    loose = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    assert not any(bound.arguments.get(name) for name in loose)


def test_there_are_calls():
    assert len(CALLS) > 8
