"""What the demo model doesn't know of a prompt or a size, told before a run. No torch."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable

from . import SIZE, demo_model

FIGURES = (
    "circle", "square", "triangle", "diamond", "star", "heart", "moon", "ring", "cross", "flower",
    "house", "boat",
)  # fmt: skip
"""What it draws; a text without one of these, or their plurals, leaves it to chance."""


@functools.cache
def known_words() -> tuple[str, ...]:
    """Return every word that the demo model was taught, from its tokenizer's file."""
    file = demo_model() / "tokenizer_2" / "tokenizer.json"
    vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    return tuple(word for word in vocabulary if word.isalpha())


def unknown_words(prompts: Iterable[str]) -> tuple[str, ...]:
    """Return the words of some prompts that the demo model doesn't know, each once."""
    known = known_words()
    # As its tokenizer reads them: without case and punctuation.
    words = [w for prompt in prompts for w in re.findall("[a-z]+", prompt.lower())]
    return tuple(dict.fromkeys(word for word in words if word not in known))


def nearest_words(word: str) -> tuple[str, ...]:
    """Return known words to write instead of one: those spelled alike, else what it draws."""
    alike = difflib.get_close_matches(word, known_words(), n=3, cutoff=0.7)
    return tuple(alike) or FIGURES


def doubts(prompts: Iterable[str], size: tuple[int, int]) -> tuple[str, ...]:
    """Return in sentences what the demo model can't draw of what is asked; empty if all is well.

    Parameters
    ----------
    prompts : iterable of str
        As `compare` takes them.
    size : (int, int)
        Width and height in pixels.
    """
    said = []
    if unknown := unknown_words(prompts):
        names = ", ".join(repr(word) for word in unknown[:6]) + ", …" * (len(unknown) > 6)
        said.append(
            f"The demo model doesn't know {names}, and draws what it likes there. "
            f"Its words: {' '.join(known_words())}."
        )
    if tuple(size) != SIZE:
        asked, own = ("x".join(map(str, sides)) for sides in (size, SIZE))
        said.append(f"The demo model was made for pictures of {own}, not {asked}: expect blobs.")
    return tuple(said)
