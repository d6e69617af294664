"""Every weights word, a row each: what it is called where, its bits, how near it stays, its colour.

The only list of them. A backend's own formulae and classes stand in the backend's folder; what
other rooms need to know of a word is looked up here. Quanto's words are listed; those of other
backends carry the backend's name and their parameters (``sdnq:uint4-g128``), and are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from .errors import ArgumentError, nearest, one_of

REFERENCE = "none"
"""The word of weights that stay as they are."""

MIXED_COLOUR = "#E69F00"
"""In plots, of recipes with several words; on white and on dark paper."""

COMPUTE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a value in each compute dtype: that of unquantized weights, of scales and shifts."""


@dataclass(frozen=True)
class Weights:
    """How the weight of a Linear layer is stored, by one word."""

    word: str
    """As users write it: on the command line, in recipes, tables and file names."""
    backend: str
    """Folder of `quantolab.backends` whose code quantizes to it; empty for the reference."""
    name: str
    """What the backend itself calls it."""
    bits: int | None
    """Of one value; None for the reference, whose values have the compute dtype's."""
    grouped: bool
    """Whether a row is divided into groups with a scale and a shift each."""
    floating: bool
    """Whether values are floating-point numbers, among which NaN can be stored."""
    near: float
    """How far, relative to its norm, a component's output may lie from the unquantized one: two
    to five times what the doctor's tiny model shows where all is well (0.04, 0.01, 0.08 and 0.47
    for float8, int8, int4 and int2). Weights that were never read give 1 or more."""
    colour: str
    """In plots, on white paper."""
    colour_on_dark: str
    group: int | None = None
    """How many values share a scale, where the word says it: 0 means the whole row."""
    rank: int | None = None
    """Of what is kept beside the values as the product of two thin matrices (SVD)."""

    @property
    def is_packed(self) -> bool:
        """Whether several values share a byte."""
        return self.bits is not None and self.bits < 8

    @property
    def per_byte(self) -> int:
        """How many values a byte holds, 1 at least."""
        return 8 // self.bits if self.bits is not None and self.is_packed else 1


# From the most precise to the least: the order of every table, menu and grid. Colours are Okabe
# and Ito's, told apart with every common kind of colour blindness, and legible on their paper.
_ROWS = (
    Weights(REFERENCE, "", "", None, False, True, 0.0, "#757575", "#9E9E9E"),
    Weights("float8", "quanto", "qfloat8_e4m3fn", 8, False, True, 0.12, "#0072B2", "#56B4E9"),
    Weights("int8", "quanto", "qint8", 8, False, False, 0.05, "#009E73", "#009E73"),
    Weights("int4", "quanto", "qint4", 4, True, False, 0.3, "#D55E00", "#D55E00"),
    Weights("int2", "quanto", "qint2", 2, True, False, 0.9, "#AA4499", "#CC79A7"),
)
_BY_WORD = {row.word: row for row in _ROWS}

WORDS = tuple(_BY_WORD)
"""Quanto's words, the reference first: what is meant where no words are named."""

QUANTIZED = tuple(word for word in WORDS if word != REFERENCE)
"""Those that quantize."""

ACTIVATIONS = tuple(row.word for row in _ROWS if row.bits == 8)
"""The words that activations can be quantized to."""

DEFAULT = "int8"
"""The word that is meant where none is named: half the bytes, and pictures that look the same."""


# --- other backends ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The words of a backend beside Quanto: ``BACKEND:NAME``, then what is said of groups."""

    backend: str
    names: str
    """Regular expression of its own names of dtypes."""
    options: str
    """Of what may follow: ``-g128`` (or ``-row``), ``-svd32``."""
    examples: tuple[str, ...]
    """For menus and messages."""
    walked: tuple[str, ...] = ()
    """Those that the path matrix runs."""


_GROUPS = r"(?:-g(?P<group>[1-9]\d{0,5})|(?P<row>-row))?"
FAMILIES = (
    Family("torchao", "int8|float8|int4", r"(?:(?<=int[48])-g(?P<group>[1-9]\d{0,5}))?",
           ("torchao:int8", "torchao:float8", "torchao:int8-g128"),
           ("torchao:float8", "torchao:int8")),
    Family("sdnq", r"u?int[2-8]|float8_e4m3fn|float8_e5m2|float4_e2m1fn|float6_e3m2fn",
           _GROUPS + r"(?:-svd(?P<rank>[1-9]\d{0,3}))?",
           ("sdnq:float8_e4m3fn", "sdnq:int8", "sdnq:uint4", "sdnq:uint4-g128", "sdnq:int4",
            "sdnq:uint4-svd32", "sdnq:uint2-g128"),
           ("sdnq:int8", "sdnq:uint4-g128")),
    Family("bitsandbytes", "int8|nf4|fp4", "", ("bitsandbytes:int8", "bitsandbytes:nf4")),
)  # fmt: skip
"""Their libraries are installed by extras of the same names, and imported for their words only."""

HOME = "quanto"
"""The backend that is always installed."""

BACKENDS = (HOME, *(family.backend for family in FAMILIES))
"""Folders of `quantolab.backends`."""

FORMS = ("sdnq", "torchao", HOME)
"""The backends whose forms saved models can be converted to."""

WALKED = {HOME: QUANTIZED, **{f.backend: f.walked for f in FAMILIES if f.walked}}
"""The words of each backend whose documented paths the doctor runs."""

EXPORT = "gguf"
"""A form for other programs, which nothing here loads."""

_NEAR = {2: 0.9, 3: 0.5, 4: 0.3, 5: 0.2, 6: 0.12, 7: 0.08, 8: 0.05}
_NEAR_FLOATING = {4: 0.4, 6: 0.2, 8: 0.12}


@lru_cache(maxsize=1024)
def _parsed(word: str) -> Weights | None:
    """Return the row that another backend's word means, None if it is none."""
    backend, colon, rest = word.partition(":")
    family = next((f for f in FAMILIES if f.backend == backend), None)
    if not colon or family is None:
        return None
    found = re.fullmatch(f"(?P<name>{family.names}){family.options}", rest, re.ASCII)
    if found is None:
        return None
    said = found.groupdict()
    name = said["name"]
    bits = int(re.findall(r"\d+", name)[0])
    floating = name.startswith("float") or name in ("nf4", "fp4")
    group = 0 if said.get("row") else int(said["group"]) if said.get("group") else None
    near = (_NEAR_FLOATING if floating else _NEAR)[bits]
    like = _BY_WORD[_drawn_like(bits, floating)]
    rank = int(said["rank"]) if said.get("rank") else None
    grouped = name.startswith("uint") or name in ("nf4", "fp4")
    return Weights(
        word, backend, name, bits, grouped, floating, near, like.colour, like.colour_on_dark,
        group, rank,
    )  # fmt: skip


def _drawn_like(bits: int, floating: bool) -> str:
    """Return the word of Quanto's whose colour a word of another backend shares."""
    if floating and bits == 8:
        return "float8"
    return "int8" if bits > 5 else "int4" if bits > 2 else "int2"


def is_word(word: object) -> bool:
    """Return whether something is a weights word, of whichever backend."""
    return isinstance(word, str) and (word in _BY_WORD or _parsed(word) is not None)


# Words that people know from elsewhere: what they are called here, or whose they are.
_OTHERS = {
    "nf4": "bitsandbytes:nf4", "fp4": "bitsandbytes:fp4", "uint4": "sdnq:uint4",
    "int8wo": "torchao:int8", "float8wo": "torchao:float8", "int4wo": "torchao:int4",
    "nvfp4": "NVIDIA's ModelOpt", "mxfp4": "a format of gpt-oss", "q4_0": "GGUF", "q8_0": "GGUF",
    "gguf": "GGUF", "float8dq": "torchao",
}  # fmt: skip


def known_word(what: str, word: object) -> str:
    """Return a weights word if there is such a one.

    Raises
    ------
    ArgumentError
        If not, with all words, and the nearest or the backend that it belongs to.
    """
    if is_word(word):
        return str(word)
    whose = _OTHERS.get(word.casefold()) if isinstance(word, str) else None
    if whose is not None and is_word(whose):
        raise ArgumentError(
            f"{what} {word!r} is a word of another backend ({whose.partition(':')[0]}): it is "
            f"written {whose!r} here; allowed without a backend: {', '.join(WORDS)}"
        )
    if whose is not None:
        raise ArgumentError(
            f"{what} {word!r} is a word of another backend ({whose}), which quantolab doesn't "
            f"have; allowed: {', '.join(WORDS)}"
        )
    if isinstance(word, str) and ":" in word:
        raise _no_such_word(what, word)
    return one_of(what, word, WORDS)


def _no_such_word(what: str, word: str) -> ArgumentError:
    """Return the error for a word that names a backend and isn't one."""
    backend = word.partition(":")[0]
    family = next((f for f in FAMILIES if f.backend == backend), None)
    if family is None:
        names = [f.backend for f in FAMILIES]
        return ArgumentError(
            f"{what} {word!r} names no backend that is known; allowed before the colon: "
            f"{', '.join(names)}{nearest(backend, names)}"
        )
    options = " (-gN: groups of N; -row: one scale a row; -svdN: rank N)" if family.options else ""
    return ArgumentError(
        f"{what} {word!r} is not known; allowed for {backend}: words such as "
        f"{', '.join(family.examples)}{options}{nearest(word, family.examples)}"
    )


def weights_of(word: str) -> Weights:
    """Return the row of a word.

    Raises
    ------
    ArgumentError
        If there is none, with all words and the nearest.
    """
    row = _BY_WORD.get(word) if isinstance(word, str) else None
    if row is None:
        row = _parsed(known_word("weights dtype", word))
        assert row is not None
    return row


def words_of(backend: str) -> dict[str, str]:
    """Return a backend's own names with the words that mean them, of words that are listed.

    Examples
    --------
    >>> words_of("quanto")["qint4"]
    'int4'
    """
    return {row.name: row.word for row in _ROWS if row.backend == backend}


def place_of(word: str) -> tuple[int, bool, int, int, str]:
    """Return where a word stands from the most precise to the least: a key to sort by."""
    row = weights_of(word)
    backend = BACKENDS.index(row.backend) if row.backend else -1
    return -(row.bits or 99), not row.floating, backend, row.group or 0, word


def in_order(words: Iterable[str]) -> tuple[str, ...]:
    """Return words from the most precise to the least, each once.

    Examples
    --------
    >>> in_order(["int2", "sdnq:int8", "int8"])
    ('int8', 'sdnq:int8', 'int2')
    """
    return tuple(sorted(set(words), key=place_of))


def backends_of(words: Iterable[str]) -> tuple[str, ...]:
    """Return the backends of some words, each once, Quanto first."""
    used = {weights_of(word).backend for word in words}
    return tuple(backend for backend in BACKENDS if backend in used)
