"""Odd command lines: each ends soon, with one line and status 2, or does what it says.

The cases are made from the parser, so that a new command or option is covered as soon as it is
there. In this process they stop where work would begin; real ones are in `test_typed_lines`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

import pytest

from quantolab import cli
from quantolab.command_line import _commands

ODD = {
    "empty": "",
    "blank": " ",
    "word": "squirrel",
    "words": "two words",
    "commas": ",,",
    "zero": "0",
    "negative": "-1",
    "huge": "1" + "0" * 30,
    "digits": "9" * 5000,
    "fraction": "0.5",
    "not a number": "nan",
    "infinite": "inf",
    "tiny": "1e-400",
    "superscript": "²",
    "arabic": "٣",
    "size": "128x999999999",
    "sizes": "²x²",
    "no size": "0x0",
    "odd size": "64x64x64",
    "control": "a\x1b[2J\rb",
    "lines": "a\nb",
    "NUL": "a\0b",
    "not UTF-8": "\udcff\udcfe",
    "long": "x" * 300,
    "longer": "x/" * 3000,
    "folder": "folder",
    "file": "file",
    "pipe": "pipe",
    "full": "/dev/full",
    "null": "/dev/null",
    "absent": "no/such/file",
    "inside a file": "file/x",
    "dangling": "dangling",
    "loop": "loop",
    "home": "~nobody-of-this-name/x",
    "up": "../" * 40 + "dev/full",
    "equals": "=",
    "brackets": "[[**",
    "markup": "<img src=x onerror=alert(1)>",
    "pattern": "*",
    "option": "--",
    "other option": "--no-such-option",
    "percent": "%s%(prog)s",
    "brace": "{}",
    "address": "https://example.invalid/a/b",
    "hub": "owner/name@",
    "right to left": "\u202egpj",
}

NEEDED = {"plan": ["demo"]}
CASES = [
    (name, action.dest, action.option_strings[-1] if action.option_strings else None)
    for name, command in _commands(cli._parser()).items()
    for action in command._actions
    if not isinstance(action, argparse._HelpAction)
]


class Began(Exception):
    """Work would begin here."""


def began(*args, **kwargs):
    raise Began


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with odd things in it, in which no work begins and which stays as it is."""
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "file").write_text("mine")
    os.mkfifo(inside / "pipe")
    (inside / "dangling").symlink_to("nowhere")
    (inside / "loop").symlink_to("loop")
    monkeypatch.chdir(inside)
    monkeypatch.setattr("quantolab.processes.children.Children.__init__", began)
    monkeypatch.setattr("quantolab.tutorials.serve", began)
    if importlib.util.find_spec("distributed"):
        monkeypatch.setattr("quantolab.run.own_cluster.begin", began)
    yield inside
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def there(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


def tidy(folder: Path, before: set[Path]) -> None:
    """Put a folder back to what it was."""
    for path in sorted(there(folder) - before, reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / "file").write_text("mine")


def words_of(name: str, option: str | None, value: str) -> list[str]:
    return [name, *([] if option is None else [*NEEDED.get(name, []), option]), value]


def lived(words: list[str], capsys) -> int | None:
    """Run a command line; return its status, None where work would have begun."""
    try:
        status = cli.main(words)
    except Began:
        return None
    printed = capsys.readouterr()
    check(status, printed.out, printed.err)
    return status


def check(status: int, out: str, err: str) -> None:
    """What holds of every command line that ends."""
    assert status in (cli.OK, cli.SOME_FAILED, cli.UNUSABLE)
    assert "Traceback" not in out + err
    if status == cli.UNUSABLE:
        assert err.startswith("quantolab: ")
        assert err.count("\n") == 1
        assert err[:-1].isprintable()


def tried(case: int, odd: str, place: Path, capsys) -> None:
    name, dest, option = CASES[case]
    before = there(place)
    status = lived(words_of(name, option, ODD[odd]), capsys)
    if status == cli.UNUSABLE:
        assert there(place) == before
    assert there(place) >= before
    assert dest == "csv" or (place / "file").read_text() == "mine"  # which may be replaced
    tidy(place, before)


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_end_in_one_line(odd, place, capsys):
    for case in range([*ODD].index(odd) % 7, len(CASES), 7):
        tried(case, odd, place, capsys)


@pytest.mark.sweep
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{n}-{d}" for n, d, _ in CASES])
def test_every_odd_value_of_every_option(case, place, capsys):
    for odd in ODD:
        tried(case, odd, place, capsys)


def test_there_are_many_cases():
    assert len(CASES) * len(ODD) > 1000
