"""Which model, and which of its components: two controls that panels share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import ipywidgets as W
import traitlets

from ..models.source import DEMO, Source, find_model
from ..models.unquantized import check_unquantized
from .latest import Latest
from .recent import recent_models

LABEL = {"description_width": "90px"}
"""How wide the labels of a panel's controls are, so that they stand in one line."""

_PLAIN = "plain files"

WRAP = {"flex_flow": "row wrap"}
"""Layout of controls in a row, which goes on below where the page is narrow."""


def labelled_row(label: str, controls: Iterable[W.Widget]) -> W.HBox:
    """Return controls in a row after their name; what wraps begins under the first of them."""
    name = W.Label(label, layout={"width": LABEL["description_width"]})
    name.add_class("ql-row-label")
    inner = W.HBox(tuple(controls), layout={**WRAP, "flex": "1 1 0", "min_width": "0"})
    return W.HBox((name, inner))


class ModelField(W.HBox):
    """A model's name and one of its components.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id; by default what `empty` says.
    show_error : callable
        Takes the reason why a model can't be had, or None when that is over.
    components : bool
        Whether a component can be chosen; else the denoiser is meant.
    label : str
        What stands before the field.
    empty : str, optional
        The model that an empty field means; None means no model at all.
    variant, revision : str, optional
        As for `load`.
    variants : bool
        Whether there is a field for the variant.
    unquantized : bool
        Whether its weights are to be quantized, so that those that are already are refused at once.
    """

    source = traitlets.Any(None, help="The `Source` that was found; None while it isn't known.")
    chosen = traitlets.Tuple(help="(model, component) whose source is known, or (); observe it.")

    def __init__(
        self,
        model=None,
        *,
        show_error: Callable[[BaseException | None], None],
        components: bool = True,
        label: str = "Model",
        empty: str | None = DEMO,
        variant: str | None = None,
        revision: str | None = None,
        variants: bool = False,
        unquantized: bool = True,
    ) -> None:
        self.variant, self.revision = variant, revision
        self._unquantized = unquantized
        self._show_error = show_error
        self._empty = empty
        self._looking = Latest()
        self.name = W.Combobox(
            value=str((empty or "") if model is None else model),
            options=_offered(empty),
            description=label,
            placeholder=f"{'demo, a' if empty == DEMO else 'a'} folder, OWNER/NAME or its address",
            continuous_update=False,
            style=LABEL,
            layout={"width": "min(420px, 100%)"},
        )
        self.component = W.Dropdown(
            description="Component", style=LABEL, layout={"width": "280px"}, disabled=True
        )
        self.variant_field = W.Text(
            value=variant or "", description="Variant", placeholder=_PLAIN, style=LABEL,
            tooltip="Variant of the weights files, such as fp16", continuous_update=False,
            layout={"width": "210px"},
        )  # fmt: skip
        super().__init__(layout=WRAP)
        shown = ((self.name, True), (self.component, components), (self.variant_field, variants))
        self.children = tuple(control for control, is_shown in shown if is_shown)
        self.variant_field.observe(lambda _: self._take_variant(), "value")
        self.name.observe(lambda _: self.look(), "value")
        self.component.observe(lambda _: self._tell(), "value")
        self.look()

    @property
    def model(self) -> str | None:
        """The model as it stands in the field."""
        return self.name.value.strip() or self._empty

    @property
    def component_name(self) -> str | None:
        """The chosen component; None for the denoiser, which is what calls take by default."""
        name = self.component.value
        return None if self.source is None or name in self.source.denoisers[:1] else name

    @property
    def pinned(self) -> str | None:
        """The model as one name, with the revision that was asked for beside it."""
        if self.source is not None and self.source.hub is not None and self.revision is not None:
            return str(self.source.hub)
        return self.model

    @property
    def named(self) -> dict[str, str]:
        """The variant and revision that were asked for beside the model, as calls take them."""
        both = {"variant": self.variant, "revision": self.revision}
        return {name: value for name, value in both.items() if value is not None}

    def look(self) -> None:
        """Find the model: at once if it is here, else in the background, as the Hub takes time."""
        model = self.model
        self._show_error(None)
        self.source, self.component.disabled = None, True

        named = self.named

        def find() -> Source | None:
            source = None if model is None else find_model(model, weights=False, **named)
            if source is not None and self._unquantized:
                for part in source.components:
                    check_unquantized(part)
            return source

        self._looking.start(find, done=self._found, failed=self._not_found)
        if model in (None, DEMO) or _is_here(model):
            self._looking.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the model is found, or can't be; return whether that came true in time."""
        return self._looking.wait(timeout)

    def _take_variant(self) -> None:
        self.variant = self.variant_field.value.strip() or None
        self.look()

    def _found(self, source: Source | None) -> None:
        if source is None:
            self.chosen = ()
            return
        names, before = tuple(part.name for part in source.components), self.component.value
        self.component.options = names  # nothing is told: the source isn't set yet
        self.component.value = before if before in names else (source.denoisers or names)[0]
        self.component.disabled = False
        only = {part.variant for part in source.components if part.note and part.variant}
        self.variant_field.placeholder = f"{only.pop()}, the only one" if len(only) == 1 else _PLAIN
        self.source = source
        self._tell()

    def _not_found(self, error: BaseException) -> None:
        self.chosen = ()
        self._show_error(error)

    def _tell(self) -> None:
        if self.source is not None and self.component.value is not None:
            self.chosen = (self.model, self.component.value)


def _is_here(model: str) -> bool:
    try:
        return Path(model).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False  # no file can be called so


def _offered(empty: str | None) -> tuple[str, ...]:
    """Return models to choose from: those of late, and those in the working directory."""
    try:
        files = [*Path().glob("*/model_index.json"), *Path().glob("*/config.json")]
    except OSError:
        files = []
    here = sorted(file.parent.name for file in files)
    return tuple(dict.fromkeys([*([empty] if empty else []), *recent_models(), *here]))
