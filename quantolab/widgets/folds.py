"""Pages under buttons that show and hide them; unlike an Accordion's, Tab reaches each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ipywidgets as W
import traitlets


class Folds(W.VBox):
    """One page at most is unfolded, under the buttons that name them.

    Parameters
    ----------
    pages : iterable of ipywidgets.Widget
        What is folded away, all of it at first.
    """

    selected_index = traitlets.Int(None, allow_none=True, help="Which page is unfolded, if any.")
    titles = traitlets.Tuple(help="The buttons' texts.")

    def __init__(self, pages: Iterable[W.Widget]) -> None:
        super().__init__()
        self.pages = tuple(W.Box((page,), layout={"display": "none"}) for page in pages)
        self.buttons = tuple(W.ToggleButton(layout={"width": "auto"}) for _ in self.pages)
        for page in self.pages:
            page.add_class("ql-fold")
        for index, button in enumerate(self.buttons):
            button.observe(lambda change, index=index: self._press(index, change["new"]), "value")
        row = W.HBox(self.buttons, layout={"flex_flow": "row wrap", "margin": "0 0 0 96px"})
        self.children = (row, *self.pages)

    def _press(self, index: int, pressed: bool) -> None:
        if pressed:
            self.selected_index = index
        elif self.selected_index == index:
            self.selected_index = None

    @traitlets.observe("selected_index")
    def _show(self, change: Any) -> None:
        for index, (button, page) in enumerate(zip(self.buttons, self.pages, strict=True)):
            button.value = index == change["new"]
            page.layout.display = None if button.value else "none"

    @traitlets.observe("titles")
    def _name(self, change: Any) -> None:
        for button, title in zip(self.buttons, change["new"], strict=True):
            button.description = title
