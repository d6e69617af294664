"""Words of other backends in menus and forms: of those that are installed, a group each."""

from __future__ import annotations

import ipywidgets as W

from ..backends import offered_words
from ..weights import WORDS
from .model_field import labelled_row


def every_word() -> tuple[str, ...]:
    """Return the words that a menu offers: Quanto's, then each other backend's."""
    return (*WORDS, *(word for words in offered_words().values() for word in words))


class BackendWords(W.VBox):
    """A row of checkboxes for each other backend that is installed, behind a button.

    `boxes` are the checkboxes by word, none of them marked; `button` opens and closes the rows.
    Where no other backend is installed there is nothing to see.
    """

    def __init__(self) -> None:
        groups = offered_words()
        self.boxes = {word: _box(word) for words in groups.values() for word in words}
        self.button = W.ToggleButton(
            description="Other backends",
            layout={"width": "auto", "display": None if groups else "none"},
            tooltip="Weights words of " + ", ".join(groups),
        )
        super().__init__(
            tuple(
                labelled_row(title, (self.boxes[word] for word in words))
                for title, words in groups.items()
            ),
            layout={"display": "none"},
        )
        self.add_class("ql-backends")
        self.button.observe(lambda _: self._show(), "value")
        for box in self.boxes.values():
            box.observe(lambda _: self._marked(), "value")

    def _show(self) -> None:
        self.layout.display = None if self.button.value else "none"

    def _marked(self) -> None:
        """Open where something is marked, and say how much of it there is."""
        count = sum(box.value for box in self.boxes.values())
        self.button.description = f"Other backends: {count}" if count else "Other backends"
        if count:
            self.button.value = True


def _box(word: str) -> W.Checkbox:
    return W.Checkbox(
        value=False,
        description=word,
        indent=False,
        layout={"width": "auto", "margin": "2px 12px 2px 2px"},
    )
