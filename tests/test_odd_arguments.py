"""Odd arguments at every public name and option: refused by a sentence, before any work.

The cases are made from the glossary and the signatures, so that a new name or argument is covered
as soon as it is there.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import quantolab as ql
from quantolab.arguments import MOST, kinds_of, public
from quantolab.errors import ArgumentError, ArgumentTypeError, QuantolabError, StorageError


class Odd:
    """An object that nobody knows, and whose text can't be had."""

    def __repr__(self):
        raise RuntimeError("no text")


class OddPath:
    def __fspath__(self):
        return b"bytes"


ODDITIES = {
    "None": None,
    "object": Odd(),
    "class": Odd,
    "bytes": b"demo",
    "NaN": math.nan,
    "complex": 1j,
    "whole": 7,
    "huge": 10**5000,
    "true": True,
    "NUL": "a\0b",
    "surrogate": "\udcff",
    "no such user": "~nobody-of-this-name/x",
    "list of objects": [Odd()],
    "endless": itertools.count(),
    "dict": {"a": 1},
    "array": np.zeros((2, 2)),
    "table": pd.DataFrame({"a": [1]}),
    "picture": Image.new("RGB", (2, 2)),
    "path of bytes": OddPath(),
    "function": len,
}

# What an argument that can't be left out is, while another is odd.
NEEDED = {
    "a module": torch.nn.Identity(),
    "a Comparison": object.__new__(ql.Comparison),
    "a table": pd.DataFrame(),
    "text or a path": "no/such/place",
    "a Recipe": "int8",
    "a pipeline": object.__new__(DiffusionPipeline),
    "a list": ["a circle"],
    "a dict": {"status": "ok"},
    "": None,
}

FUNCTIONS = {name: value for name in ql.__all__ if inspect.isfunction(value := getattr(ql, name))}


PARAMETERS = [
    (name, parameter, kind.said)
    for name, function in FUNCTIONS.items()
    for parameter, kind in kinds_of(inspect.unwrap(function)).items()
]


def wrong_ones(said: str) -> dict[str, object]:
    """Return the oddities that a kind doesn't take, by their names."""
    return {odd: value for odd, value in ODDITIES.items() if not _allowed(said, odd)}


def _allowed(said: str, odd: str) -> bool:
    """Whether an oddity is of the kind after all: written down apart from what takes it."""
    words = {
        "None": ("None",),
        "whole": ("a whole number", "a number", "seconds"),
        "huge": ("a whole number",),
        "true": ("True or False",),
        "no such user": () if "a path" in said else ("text",),
        "table": ("pandas.DataFrame",),
        "function": ("a function",),
        "class": ("a function",),
        "bytes": ("bytes",),
        "dict": ("of text to anything",),
    }
    return any(word in said for word in words.get(odd, ()))


def called_with(name: str, parameter: str, value: object):
    """Call a public function with one odd argument; those it can't go without are absent paths."""
    function = FUNCTIONS[name]
    kinds = kinds_of(inspect.unwrap(function))
    needed = {
        p.name: next(v for begin, v in NEEDED.items() if kinds[p.name].said.startswith(begin))
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    return function(**{**needed, parameter: value})


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty current folder, in which no work may begin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quantolab.processes.children.Children.__init__", begins)
    monkeypatch.setattr("quantolab.models.source.read_source", begins)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def begins(*args, **kwargs):
    raise AssertionError("work began")


@pytest.mark.parametrize(("name", "parameter", "kind"), PARAMETERS)
def test_wrong_kinds_are_refused_before_any_work(name, parameter, kind, nowhere):
    for odd, value in wrong_ones(kind).items():
        with pytest.raises(ArgumentTypeError) as refused:
            called_with(name, parameter, value)
        said = str(refused.value)
        assert f"{parameter} must be" in said, odd
        assert "\n" not in said
        assert len(said) < 300


def test_there_are_many_cases():
    assert sum(len(wrong_ones(kind)) for _, _, kind in PARAMETERS) > 1000
    assert {name for name, _, _ in PARAMETERS} == FUNCTIONS.keys() - {"demo_model"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_is_checked(name):
    assert hasattr(FUNCTIONS[name], "__wrapped__"), f"mark {name} with @public"
    rest = inspect.signature(FUNCTIONS[name]).parameters.values()
    named = [p.name for p in rest if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert list(kinds_of(FUNCTIONS[name].__wrapped__)) == named


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_that_is_not_there(name, nowhere):
    with pytest.raises(ArgumentError):
        FUNCTIONS[name](no_such_argument=1)


def test_a_misspelt_argument_gets_the_right_spelling(nowhere):
    with pytest.raises(TypeError, match="did you mean 'device'"):
        ql.load(devcie="cpu")
    with pytest.raises(ArgumentError, match="did you mean 'inputs'"):
        ql.advise("demo", "4MB", inpust=3)


@public
def take(a: int, b: tuple[int, int] | None = None, c: float = 0.5) -> tuple:
    return a, b, c


def test_values_of_numpy_are_numbers_and_lists_are_pairs():
    assert take(np.int64(3), [1, np.int32(2)], np.float32(0.5)) == (3, (1, 2), 0.5)


def test_iterators_are_read_once_and_not_without_end():
    @public
    def listed(names: Iterable[str] | str) -> tuple:
        return names

    assert listed(iter("ab")) == ("a", "b")
    with pytest.raises(ArgumentTypeError):
        listed(str(n) for n in range(MOST + 1))


LONG = "x" * 300


@pytest.mark.parametrize(
    "call",
    [
        lambda: ql.load(LONG),
        lambda: ql.plan(LONG),
        lambda: ql.load_saved(LONG),
        lambda: ql.load_comparison(LONG),
        lambda: ql.load_single_file(LONG + ".safetensors", config="demo"),
        lambda: ql.load_single_file("/" * 5000, config="demo"),
        lambda: ql.from_quanto(LONG, "out"),
        lambda: ql.verify_saved(LONG),
        lambda: ql.compare("demo", ["int8"], seeds=[2**64]),
        lambda: ql.compare("demo", ["int8"], size=(2**40, 2**40)),
        lambda: ql.compare("demo", ["int8"], guidance=math.inf),
        lambda: ql.compare("demo", ["int8"], steps=10**9),
        lambda: ql.compare("demo", ["int8"], repeats=10**9),
        lambda: ql.compare("demo", ["int8"], stall_seconds=-1.0),
        lambda: ql.compare("demo", [], seeds=()),
        lambda: ql.compare("demo", device="cpu:gpu"),
        lambda: ql.plan("demo", vram=-5),
        lambda: ql.plan("demo", vram=math.inf),
        lambda: ql.Recipe("int8", skip=[{}]),
        lambda: ql.Recipe(["int8"]),
        lambda: ql.Recipe("int8", components=5),
    ],
)  # fmt: skip
def test_odd_values_get_a_sentence(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuantolabError) as refused:
        call()
    assert str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_said_in_one_sentence():
    @public
    def look(path: str) -> bool:
        return bool(Path(path).stat())

    with pytest.raises(StorageError, match="File name too long"):
        look(LONG)


def test_only_public_names_are_offered():
    assert dir(ql) == sorted(ql.__all__)


@pytest.mark.parametrize(
    "find", [ql.advice_cost, lambda model, **more: ql.advise(model, 1, **more)]
)
def test_advice_chooses_the_words_itself(find):
    with pytest.raises(ArgumentError, match="take no recipes: they choose among float8"):
        find("demo", recipes=["sdnq:int8"])
