"""Under the prompts: words that the demo model doesn't know, and what to write instead."""

from __future__ import annotations

import re

import ipywidgets as W

from ..demo.knowing import nearest_words, unknown_words
from ..report.markup import note
from .choosing import read_lines
from .model_field import WRAP


class PromptHints(W.VBox):
    """A sentence, and buttons that write a known word in the place of the first unknown one.

    Parameters
    ----------
    prompts : ipywidgets.Textarea
        A prompt a line.
    """

    def __init__(self, prompts: W.Textarea) -> None:
        self._prompts = prompts
        self._unknown: tuple[str, ...] = ()
        self.said, self.buttons = W.HTML(), W.HBox(layout=WRAP)
        super().__init__((self.said, self.buttons), layout={"display": "none"})
        self.add_class("ql-hints")

    def update(self, *, is_demo: bool) -> None:
        """Look at the prompts; of other models nobody here knows what they know."""
        found = unknown_words(read_lines(self._prompts.value)) if is_demo else ()
        if found == self._unknown:
            return
        self._unknown = found
        self.layout.display = None if found else "none"
        if not found:
            return
        first, *others = found
        more = f"; nor {', '.join(others)}" if others else ""
        self.said.value = note(
            f"The demo model doesn't know {first!r}{more}. Instead of {first!r}:"
        )
        self.buttons.children = tuple(self._button(first, word) for word in nearest_words(first))

    def _button(self, unknown: str, word: str) -> W.Button:
        button = W.Button(
            description=word,
            tooltip=f"Writes {word} in the place of {unknown}",
            layout={"width": "auto"},
        )
        button.add_class("ql-chip")

        def write(_: W.Button) -> None:
            whole_word = rf"(?<![a-z]){unknown}(?![a-z])"
            self._prompts.value = re.sub(whole_word, word, self._prompts.value, flags=re.I)
            self._prompts.focus()  # the button is gone

        button.on_click(write)
        return button
