"""A recipe in which components and layers have words of their own, with what each term hits."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets

from ..backends import layer_bytes
from ..errors import ArgumentError, QuantolabError
from ..models.layers import check_patterns, match_layers
from ..planning.skips import layers_of, with_recipe
from ..recipes import Recipe, Term
from ..report.markup import Raw, alert, code, escaped, note, table
from ..shapes import Layer
from ..units import format_bytes, format_count
from ..weights import DEFAULT
from .backend_words import every_word
from .latest import Latest
from .model_field import LABEL, WRAP
from .panel import Panel
from .skip_picker import look_at_layers

if TYPE_CHECKING:
    import pandas

    from .background import Assistant

_AS_IT_IS = "as it is"


class WordsField(W.VBox):
    """A word for each component, and a list of terms for layers; shows what each hits.

    `value` is the recipe's text, empty where nothing is said; observe it. The model's layers are
    looked up once `unfold` is called, not before: that needs torch.

    Parameters
    ----------
    assistant : Assistant, optional
        Process that looks at the model; by default this one does.
    """

    value = traitlets.Unicode("", help="The recipe's text; empty where nothing is said.")

    def __init__(self, *, assistant: Assistant | None = None) -> None:
        self._assistant = assistant
        self._model: tuple[Any, ...] = ()
        self._looked: tuple[Any, ...] = ()
        self._unfolded = False
        self._denoisers: tuple[str, ...] = ()
        self._report: pandas.DataFrame | None = None
        self._failure: BaseException | None = None
        self._terms: tuple[Term, ...] = ()
        self._lock = threading.RLock()  # the look-up and the user's clicks both draw
        self._looking = Latest(self._lock)
        self.parts: dict[str, W.Dropdown] = {}
        super().__init__()
        self.add_class("ql-words")
        self._make_controls()

    def _make_controls(self) -> None:
        self._parts_row = W.HBox(layout=WRAP)
        self.pattern = W.Text(
            description="Layers",
            placeholder="name, path or pattern: proj_out, *.attn.*, transformer_blocks.0",
            style=LABEL,
            layout={"width": "min(520px, 100%)"},
        )
        self.word = W.Dropdown(
            description="in",
            style={"description_width": "initial"},
            options=every_word(),
            value=DEFAULT,
            layout={"width": "150px"},
            tooltip="Their weights dtype",
        )
        self.add = W.Button(
            description="Add this term",
            disabled=True,
            tooltip="Layers that the pattern hits get this word; later terms win",
            layout={"width": "auto"},
        )
        self.hint, self.chips, self.preview, self.error = (
            W.HTML(layout={"margin": "0 2px 0 99px"}), W.HBox(layout=WRAP), W.HTML(), W.HTML(),
        )  # fmt: skip
        self.hint.add_class("ql-preview")
        self.chips.add_class("ql-chips")
        self.error.add_class("ql-error")
        self.on_click(self.add, self._add)
        self.on_change((self.pattern, self.word), self._draw_hint)
        self.pattern.on_msg(  # Enter
            self.guarded(lambda _, content, __: content.get("event") == "submit" and self._add())
        )
        self.children = (
            self._parts_row, W.HBox((self.pattern, self.word, self.add), layout=WRAP),
            self.hint, self.chips, self.error, self.preview,
        )  # fmt: skip

    # Errors of handlers are shown, as in a panel.
    guarded, on_click, on_change = Panel.guarded, Panel.on_click, Panel.on_change
    show_error = Panel.show_error

    # --- for programs ---

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, None where nothing is said.

        Raises
        ------
        ArgumentError
            If it is none, or some of it takes no effect in this model.
        """
        made = self._made()
        if made is not None and self._report is not None:
            with_recipe(self._report, made, self._denoisers, self._looked[2])
        return made

    @property
    def report(self) -> pandas.DataFrame | None:
        """What `skip_report` gives for the recipe; None until it is known, or without one."""
        made = self._made()
        if made is None or self._report is None:
            return None
        return with_recipe(self._report, made, self._denoisers, self._looked[2])

    @property
    def terms(self) -> tuple[Term, ...]:
        """What is said of layers, in order; set it to choose by program."""
        return self._terms

    @terms.setter
    def terms(self, terms: tuple[Term, ...]) -> None:
        last = {name: Term(name, word) for name, word in terms}  # of one name the last counts
        self._terms = tuple(last.values())
        self._changed()

    def show(self, recipe: Recipe | None) -> None:
        """Set all controls to a recipe; None empties them."""
        terms = () if recipe is None else recipe.terms
        words = {term.name: term.word for term in terms if term.name in self.parts}
        if recipe is not None and recipe.base is not None:
            words = dict.fromkeys(self._denoisers, recipe.base) | words
        with self._lock:
            self._terms = tuple(term for term in terms if term.name not in self.parts)
            for name, box in self.parts.items():
                word = words.get(name, _AS_IT_IS)
                if word not in box.options:  # another backend's
                    box.options = (*box.options, word)
                box.value = word
        self._changed()

    def set_model(
        self, model: Any, names: tuple[str, ...], denoisers: tuple[str, ...], dtype: str
    ) -> None:
        """Offer a model's components; its layers are looked up once the field is unfolded."""
        with self._lock:
            if self._model == (model, names, dtype):
                return
            if names != tuple(self.parts):
                self._offer(names)
            self._denoisers = denoisers
            self._model = (model, names, dtype)
        self._look()
        self._changed()

    def unfold(self) -> None:
        """Look at the model's layers, now that they are wanted."""
        self._unfolded = True
        self._look()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the layers are known, or can't be; whether that came true in time."""
        return self._looking.wait(timeout)

    # --- what it says ---

    def _made(self) -> Recipe | None:
        """Return what the controls say, whether the model has such layers or not."""
        words = {n: box.value for n, box in self.parts.items() if box.value != _AS_IT_IS}
        if not words and not self._terms:
            return None
        return Recipe(words, layers=dict(self._terms))

    def _add(self) -> None:
        name = self.pattern.value.strip()
        if not name:
            return
        self.show_error(None)
        if self._report is not None:
            check_patterns((name,), layers_of(self._report))
        Recipe(layers={name: self.word.value})  # refuses what is no name
        self.terms = (*(t for t in self._terms if t.name != name), Term(name, self.word.value))
        self.pattern.value = ""

    def _offer(self, names: tuple[str, ...]) -> None:
        self.parts = {
            name: W.Dropdown(
                description=name, options=(_AS_IT_IS, *every_word()), value=_AS_IT_IS,
                style={"description_width": "initial"}, layout={"width": "auto"},
            )
            for name in names
        }  # fmt: skip
        self.on_change(self.parts.values(), self._changed)
        label = W.Label("Components", layout={"width": LABEL["description_width"]})
        label.add_class("ql-row-label")
        self._parts_row.children = (label, *self.parts.values())

    # --- looking at the model ---

    def _look(self) -> None:
        if not (self._unfolded and self._model) or self._model == self._looked:
            return
        with self._lock:
            self._looked, self._report, self._failure = self._model, None, None
            self._looking.start(
                lambda: look_at_layers(*self._looked, self._assistant),
                done=self._show_report,
                failed=self._show_failure,
            )

    def _show_report(self, report: pandas.DataFrame) -> None:
        self._report = report
        self._draw()

    def _show_failure(self, error: BaseException) -> None:
        self._failure = error
        self._draw()

    # --- drawing ---

    def _changed(self) -> None:
        try:
            made = self._made()
            self.value = "" if made is None else str(made)
        except QuantolabError:
            self.value = ""  # what is wrong with it is shown
        self._draw()

    def _draw(self) -> None:
        with self._lock:
            self._draw_chips()
            self._draw_hint()
            self.preview.value = self.preview_html()

    def preview_html(self) -> str:
        """Return what each word hits and what its layers take, as an HTML table."""
        if self._failure is not None:
            return alert(self._failure)
        try:
            report = self.report
        except QuantolabError as error:
            return alert(error)
        if report is None:
            return note("Reading which layers there are…") if self.value and self._unfolded else ""
        recipe = self._made()
        plain, held = int(report["bytes_none"].sum()), int(report["bytes"].sum())
        return table(
            ("term", "hits", "decides", "these take", "unquantized"),
            [self._cells(term, report) for term in recipe.terms],
            align="lrrrr",
            caption="What each term hits; where two hit one layer the later one decides",
            foot=(
                "all Linear layers",
                str(len(report)),
                "",
                format_bytes(held),
                format_bytes(plain),
            ),
        )

    def _cells(self, term: Term, report: pandas.DataFrame) -> tuple[object, ...]:
        mine = report[report["term"] == str(term)]
        return (
            code(str(term)), str(_hits(term, report)), str(len(mine)),
            format_bytes(int(mine["bytes"].sum())), format_bytes(int(mine["bytes_none"].sum())),
        )  # fmt: skip

    def _draw_hint(self) -> None:
        name = self.pattern.value.strip()
        self.add.disabled = not name
        if not name or self._report is None:
            self.hint.value = ""
            return
        layers = layers_of(self._report)
        try:
            check_patterns((name,), layers)
        except ArgumentError as error:
            self.hint.value = note(error)
            return
        mine = self._report[_hit_rows(name, self._report)]
        held, plain = _bytes(mine, self.word.value, self._looked[2]), int(mine["bytes_none"].sum())
        said = (
            f"hits {format_count(len(mine), 'Linear layer')}: {format_bytes(held)} in "
            f"{self.word.value}, {format_bytes(plain)} unquantized"
        )
        self.hint.value = note(Raw(f"{code(name)} {escaped(said)}"))

    def _draw_chips(self) -> None:
        self.chips.children = tuple(self._chip(term) for term in self._terms)

    def _chip(self, term: Term) -> W.Button:
        chip = W.Button(
            description=f"{term}  ✕",
            tooltip=f"Take {term} away",
            layout={"width": "auto", "max_width": "none"},
        )
        chip.add_class("ql-chip")

        def drop() -> None:
            self.terms = tuple(t for t in self._terms if t != term)
            self.pattern.focus()  # what had it is gone

        self.on_click(chip, drop)
        return chip


def _bytes(rows: pandas.DataFrame, word: str, dtype: str) -> int:
    """Return the bytes of some rows' layers in a word, which may be another backend's."""
    if f"bytes_{word}" in rows.columns:
        return int(rows[f"bytes_{word}"].sum())
    shapes = rows[["path", "in_features", "out_features"]].itertuples(index=False)
    return sum(layer_bytes(Layer(*shape, bias=False), word, dtype) for shape in shapes)


def _hit_rows(name: str, report: pandas.DataFrame) -> list[bool]:
    """Return, for each row, whether a pattern hits it."""
    hits = {part: match_layers((name,), ls, part) for part, ls in layers_of(report).items()}
    pairs = zip(report["component"], report["path"], strict=True)
    return [path in hits[part] for part, path in pairs]


def _hits(term: Term, report: pandas.DataFrame) -> int:
    """Return how many of the report's layers a term hits; a component's name hits all of it."""
    of_it = int((report["component"] == term.name).sum())
    return of_it or sum(_hit_rows(term.name, report))
