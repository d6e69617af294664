"""Code to take along, with a button that copies it."""

from __future__ import annotations

import anywidget
import traitlets

from .assets import asset


class CodeBox(anywidget.AnyWidget):
    """Shows code and copies it to the clipboard.

    Parameters
    ----------
    label : str
        What the code is, over it.
    """

    _esm = asset("shared.js", "code_box.js")
    _css = asset("code_box.css")

    label = traitlets.Unicode().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)

    def __init__(self, label: str, code: str = "") -> None:
        super().__init__(label=label, code=code)
