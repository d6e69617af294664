"""What to quantize to, in which precision to compute, where, and which layers to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as W
import traitlets

from ..devices import DEVICES
from ..recipes import COMPUTE_DTYPES, Recipe
from ..weights import DEFAULT, REFERENCE, WORDS
from .model_field import LABEL, WRAP
from .skip_picker import SkipPicker

if TYPE_CHECKING:
    from .background import Assistant


class RecipeField(W.VBox):
    """Weights dtype, compute dtype, device, and a skip picker that opens on demand.

    The model's layers are looked up when the picker is opened, not before: that needs torch.

    Parameters
    ----------
    weights : bool
        Whether one weights dtype is chosen here; else the panel lists several by itself.
    assistant : Assistant, optional
        Process in which the skip picker looks at the model; by default this one.
    """

    state = traitlets.Tuple(help="All that is chosen here; observe it.")

    def __init__(self, *, weights: bool = True, assistant: Assistant | None = None) -> None:
        self._model: tuple = ()
        self._looked: tuple = ()
        self.weights = W.Dropdown(
            description="Weights", options=WORDS, value=DEFAULT, style=LABEL,
            layout={"width": "190px"},
        )  # fmt: skip
        self.dtype = W.Dropdown(
            description="Compute in", options=COMPUTE_DTYPES, style=LABEL, layout={"width": "220px"}
        )
        self.device = W.Dropdown(
            description="Device", options=DEVICES, style=LABEL, layout={"width": "190px"}
        )
        self.picker = SkipPicker(load=False, assistant=assistant)
        self.more = W.Accordion((self.picker,), selected_index=None)
        super().__init__()
        first = (self.weights,) if weights else ()
        self.children = (W.HBox((*first, self.dtype, self.device), layout=WRAP), self.more)
        for control in (self.weights, self.dtype, self.device, self.picker):
            control.observe(lambda _: self._tell(), "value")
        self.dtype.observe(lambda _: self._look(), "value")
        self.more.observe(lambda _: self._look(), "selected_index")
        self._tell()

    @property
    def skip(self) -> tuple[str, ...]:
        """The skip patterns."""
        return self.picker.value

    def recipe(self, component: str | None = None, weights: str | None = None) -> Recipe:
        """Return the recipe for a component; None is the denoiser. Nothing is skipped of 'none'."""
        word = weights or self.weights.value
        if word == REFERENCE:
            return Recipe(word)
        return Recipe(word, self.skip, (component,) if component else ())

    def set_model(self, model=None, component: str | None = None) -> None:
        """Say whose layers the skip picker offers; they are looked up once it is open."""
        self._model = (model, component)
        self._look()

    def _look(self) -> None:
        wanted = (*self._model, self.dtype.value)
        if not self._model or self.more.selected_index is None:
            return
        if wanted != self._looked or not (self.picker.loaded or self.picker.busy):
            self._looked = wanted
            self.picker.set_model(*wanted)

    def _tell(self) -> None:
        count = len(self.skip)
        which = f"{count} pattern{'' if count == 1 else 's'}" if count else "none"
        self.more.titles = (f"Layers to keep unquantized: {which}",)
        self.state = (self.weights.value, self.dtype.value, self.device.value, self.skip)
