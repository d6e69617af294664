"""Every weights word, a row each: what it is called where, its bits, how near it stays, its colour.

The only list of them. A backend's own formulae and classes stand in the backend's folder; what
other rooms need to know of a word is looked up here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ArgumentError, one_of

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
"""Every word, the reference first."""

QUANTIZED = tuple(word for word in WORDS if word != REFERENCE)
"""The words that quantize."""

ACTIVATIONS = tuple(row.word for row in _ROWS if row.bits == 8)
"""The words that activations can be quantized to."""

BACKENDS = tuple(dict.fromkeys(row.backend for row in _ROWS if row.backend))
"""Folders of `quantolab.backends`."""

DEFAULT = "int8"
"""The word that is meant where none is named: half the bytes, and pictures that look the same."""


# Words that people know from elsewhere, and whose they are.
_OTHERS = {
    "nf4": "bitsandbytes", "fp4": "bitsandbytes", "nvfp4": "NVIDIA's ModelOpt",
    "mxfp4": "a format of gpt-oss", "q4_0": "GGUF", "q8_0": "GGUF", "uint4": "SDNQ", "gguf": "GGUF",
    "int8wo": "torchao", "int4wo": "torchao", "float8wo": "torchao", "float8dq": "torchao",
}  # fmt: skip


def known_word(what: str, word: object) -> str:
    """Return a weights word if there is such a one.

    Raises
    ------
    ArgumentError
        If not, with all words, and the nearest or the backend that it belongs to.
    """
    whose = _OTHERS.get(word.casefold()) if isinstance(word, str) else None
    if whose is not None:
        raise ArgumentError(
            f"{what} {word!r} is a word of another backend ({whose}), which quantolab doesn't "
            f"have; allowed: {', '.join(WORDS)}"
        )
    return one_of(what, word, WORDS)


def weights_of(word: str) -> Weights:
    """Return the row of a word.

    Raises
    ------
    ArgumentError
        If there is none, with all words and the nearest.
    """
    return _BY_WORD[known_word("weights dtype", word)]


def words_of(backend: str) -> dict[str, str]:
    """Return a backend's own names with the words that mean them.

    Examples
    --------
    >>> words_of("quanto")["qint4"]
    'int4'
    """
    return {row.name: row.word for row in _ROWS if row.backend == backend}
