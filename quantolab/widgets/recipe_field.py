"""What to quantize to, in which precision to compute, where, and what holds for some layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as W
import traitlets

from ..devices import DEVICES
from ..recipes import COMPUTE_DTYPES, Recipe
from ..weights import DEFAULT, REFERENCE
from .backend_words import every_word
from .folds import Folds
from .model_field import LABEL, WRAP
from .skip_picker import SkipPicker
from .words_field import WordsField

if TYPE_CHECKING:
    from ..models.source import Source
    from .background import Assistant


class RecipeField(W.VBox):
    """Weights dtype, compute dtype, device, and what opens on demand: a skip picker, a words field.

    The model's layers are looked up when one of these is opened, not before: that needs torch.

    Parameters
    ----------
    weights : bool
        Whether one weights dtype is chosen here; else the panel lists several by itself.
    mixed : bool
        Whether components and layers may have words of their own.
    assistant : Assistant, optional
        Process in which the skip picker looks at the model; by default this one.
    """

    state = traitlets.Tuple(help="All that is chosen here; observe it.")

    def __init__(
        self, *, weights: bool = True, mixed: bool = False, assistant: Assistant | None = None
    ) -> None:
        self._model: tuple = ()
        self._looked: tuple = ()
        self._source: Source | None = None
        self.weights = W.Dropdown(
            description="Weights", options=every_word(), value=DEFAULT, style=LABEL,
            layout={"width": "230px"},
        )  # fmt: skip
        self.dtype = W.Dropdown(
            description="Compute in", options=COMPUTE_DTYPES, style=LABEL, layout={"width": "220px"}
        )
        self.device = W.Dropdown(
            description="Device", options=DEVICES, style=LABEL, layout={"width": "190px"}
        )
        self.picker = SkipPicker(load=False, assistant=assistant)
        self.words = WordsField(assistant=assistant)
        pages = (self.picker, self.words) if mixed else (self.picker,)
        self.more = Folds(pages)
        super().__init__()
        first = (self.weights,) if weights else ()
        self.children = (W.HBox((*first, self.dtype, self.device), layout=WRAP), self.more)
        for control in (self.weights, self.dtype, self.device, self.picker, self.words):
            control.observe(lambda _: self._tell(), "value")
        self.dtype.observe(lambda _: self._look(), "value")
        self.more.observe(lambda _: self._look(), "selected_index")
        self._tell()

    @property
    def skip(self) -> tuple[str, ...]:
        """The skip patterns."""
        return self.picker.value

    def recipe(self, component: str | None = None, weights: str | None = None) -> Recipe:
        """Return the recipe for a component; None is the denoiser. Nothing is skipped of 'none'.

        Words by component and layer, where there are some, count instead of all this.
        """
        if (mixed := self.words.recipe) is not None:
            return mixed
        word = weights or self.weights.value
        if word == REFERENCE:
            return Recipe(word)
        return Recipe(word, self.skip, (component,) if component else ())

    @property
    def is_mixed(self) -> bool:
        """Whether components and layers have words of their own."""
        return bool(self.words.value)

    def set_model(
        self, model=None, component: str | None = None, source: Source | None = None
    ) -> None:
        """Say whose layers are offered; they are looked up once that is open.

        Parameters
        ----------
        model, component
            As the skip picker takes them.
        source : Source, optional
            The model that was found, whose components may have words of their own.
        """
        self._model = (model, component)
        self._source = source
        self._look()

    def _look(self) -> None:
        if self._source is not None:
            names = tuple(part.name for part in self._source.components)
            self.words.set_model(self._model[0], names, self._source.denoisers, self.dtype.value)
        if self.more.selected_index == 1:
            self.words.unfold()
        wanted = (*self._model, self.dtype.value)
        if not self._model or self.more.selected_index != 0:
            return
        if wanted != self._looked or not (self.picker.loaded or self.picker.busy):
            self._looked = wanted
            self.picker.set_model(*wanted)

    def _tell(self) -> None:
        count = len(self.skip)
        which = f"{count} pattern{'' if count == 1 else 's'}" if count else "none"
        titles = (
            f"Layers to keep unquantized: {which}",
            f"Words by component and layer: {self.words.value or 'none'}",
        )
        self.more.titles = titles[: len(self.more.pages)]
        self.weights.disabled = self.is_mixed
        self.state = (
            self.weights.value,
            self.dtype.value,
            self.device.value,
            self.skip,
            self.words.value,
        )
