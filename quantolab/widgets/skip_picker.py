"""Which Linear layers stay unquantized: found among the model's real ones, with what they cost."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets

from ..errors import ArgumentError
from ..models.layers import check_patterns, match_layers
from ..models.source import find_model
from ..planning.skips import layers_of, skip_report, with_skips
from ..recipes import Recipe
from ..report.markup import Raw, code, escaped, note, table
from ..run.preloads import preload_of
from ..shapes import Layer
from ..units import ABSENT, format_bytes, format_count
from ..weights import QUANTIZED
from .jobs import ListJob
from .kinds import LIST_LAYERS
from .latest import Latest
from .panel import Panel

if TYPE_CHECKING:
    import pandas

    from .background import Assistant


@dataclass(frozen=True)
class SkipCost:
    """What keeping some layers means."""

    layers: int
    """Linear layers that are hit."""
    added_bytes: dict[str, int]
    """What keeping them adds, by weights dtype; layers that the model keeps anyway add nothing."""
    diffusers_layers: int
    """How many of them plain Diffusers would keep for the same words."""

    @property
    def in_diffusers(self) -> str:
        """What plain Diffusers makes of the same words."""
        if not self.layers:
            return ABSENT
        if self.diffusers_layers == self.layers:
            return "keeps the same"
        return f"keeps {self.diffusers_layers or 'none'} of them"


def skip_cost(report: pandas.DataFrame, patterns: Iterable[str]) -> SkipCost:
    """Return what patterns hit, all together, and what keeping that adds.

    Parameters
    ----------
    report : pandas.DataFrame
        From `skip_report` without a skip list.
    patterns : iterable of str
        Leaf names, full paths, containers' paths or globs; those that hit nothing count nothing.
    """
    patterns = tuple(patterns)
    hits = {name: match_layers(patterns, ls, name) for name, ls in layers_of(report).items()}
    rows = [row for row in report.to_dict("records") if row["path"] in hits[row["component"]]]
    free = [row for row in rows if not row["skipped"]]
    return SkipCost(
        len(rows),
        {w: sum(row["bytes_none"] - row[f"bytes_{w}"] for row in free) for w in QUANTIZED},
        sum(row["path"].rpartition(".")[2] in patterns for row in rows),
    )


_INDENTED = "0 2px 0 99px"  # where the fields begin, behind their labels
_SINGLE = "single layers"
_VIEWS: dict[str, Callable[[Layer], Iterable[str]]] = {
    _SINGLE: lambda layer: [layer.path],
    "the same layer of every block": lambda layer: [_starred(layer.path)],
    "names, as Diffusers matches": lambda layer: [layer.leaf],
    "blocks and other containers": lambda layer: _containers(layer.path),
}
"""Ways to list layers: for each, the patterns that a layer is listed under."""


def look_at_layers(
    model: Any, names: tuple[str, ...], dtype: str, assistant: Assistant | None
) -> pandas.DataFrame:
    """Return what `skip_report` gives for some components without a skip list.

    Parameters
    ----------
    model : str or path or None
        As `skip_report` takes it.
    names : tuple of str
        The components; none are the denoisers.
    dtype : str
        Compute dtype, in which kept layers are held.
    assistant : Assistant or None
        Process that looks at the model; None is this one, which imports torch for it.
    """
    if assistant is None:
        return skip_report(model, components=names, dtype=dtype)
    import pandas as pd

    source = find_model(model, weights=False)
    components = names or source.default_components
    for name in components:
        source.component(name)
    asked = ListJob(source, components, dtype)
    found = assistant.do(LIST_LAYERS, asked, preload=preload_of(source))
    return pd.DataFrame(list(found.rows))


class SkipPicker(W.VBox):
    """Chooses skip patterns among a model's Linear layers, of which no weight is read.

    `value` holds the patterns, as `Recipe(skip=...)` takes them; observe it. They may be set
    before the layers are known, and are kept when the model changes.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (also what None means), a folder in Diffusers layout, or a Hub id.
    component : str or iterable of str, optional
        Which parts to look at; by default the denoiser.
    dtype : str
        Compute dtype, in which kept layers are held.
    load : bool
        Whether to look at the model at once; else `set_model` does so later.
    assistant : Assistant, optional
        Process that looks at the model; by default this one does, and imports torch for it.
    """

    value = traitlets.Tuple(help="The patterns, in the order in which they were chosen.")
    loaded = traitlets.Bool(False, help="Whether the model's layers are known.")
    busy = traitlets.Bool(False, help="Whether they are being looked up.")

    def __init__(
        self,
        model=None,
        component=None,
        dtype: str = "bfloat16",
        *,
        load: bool = True,
        assistant: Assistant | None = None,
    ) -> None:
        self.dtype = dtype
        self._assistant = assistant
        self._base: pandas.DataFrame | None = None
        self._layers: dict[str, tuple[Layer, ...]] = {}
        self._failure: BaseException | None = None
        self._lock = threading.RLock()  # the look-up and the user's clicks both draw
        self._looking = Latest(self._lock)
        self._chips: dict[str, W.Button] = {}
        super().__init__()
        self.add_class("ql-skips")
        self._make_controls()
        if load:
            self.set_model(model, component)
        else:
            self._draw()

    # --- for programs ---

    def set_model(self, model=None, component=None, dtype: str | None = None) -> None:
        """Look at another model or component, in the background; the patterns stay."""
        names = (component,) if isinstance(component, str) else tuple(component or ())
        with self._lock:
            self.dtype = dtype = dtype or self.dtype
            self.clear()
            self.busy = True
            self._looking.start(
                lambda: look_at_layers(model, names, dtype, self._assistant),
                done=self._show_layers,
                failed=self._show_failure,
            )
            self._draw()

    def clear(self) -> None:
        """Forget the model's layers; the patterns stay."""
        with self._lock:
            self._looking.forget()
            self._base, self._layers, self._failure = None, {}, None
            self.loaded = self.busy = False
            self._draw()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the layers are known, or can't be; whether that came true in time."""
        return self._looking.wait(timeout)

    @property
    def report(self) -> pandas.DataFrame | None:
        """What `skip_report` gives for the model and the patterns; None until it is known.

        Raises
        ------
        ArgumentError
            If one of the patterns hits no layer of this model.
        """
        return None if self._base is None else with_skips(self._base, self.value)

    @property
    def cost(self) -> SkipCost | None:
        """What the patterns keep, all together; None until the layers are known."""
        return None if self._base is None else skip_cost(self._base, self.value)

    @property
    def problem(self) -> BaseException | None:
        """Why the model can't be looked at, or which pattern hits nothing; None if all is well."""
        return self._failure or self._dead_pattern()

    def keep(self, *patterns: str) -> None:
        """Add patterns.

        Raises
        ------
        ArgumentError
            If one hits no layer; then none is added.
        """
        if self._layers:
            check_patterns(patterns, self._layers)
        self.value = (*self.value, *patterns)

    def drop(self, pattern: str) -> None:
        """Take a pattern away."""
        self.value = tuple(p for p in self.value if p != pattern)

    def costs_html(self) -> str:
        """Return what each pattern hits and adds, as an HTML table; empty without patterns."""
        if self._base is None or not self.value:
            return ""
        rows = [
            (code(pattern), *_cost_cells(skip_cost(self._base, (pattern,))))
            for pattern in self.value
        ]
        return table(
            ("kept", "layers", *QUANTIZED, "plain Diffusers"),
            rows,
            align="l" + "r" * (1 + len(QUANTIZED)) + "l",
            caption="Bytes that keeping them adds, by what the others are quantized to",
            foot=("together", *_cost_cells(self.cost, of=len(self._base))),
        )

    # --- parts ---

    def _make_controls(self) -> None:
        self.search = W.Text(
            description="Find layers",
            placeholder="part of a name, or a pattern: proj_out, *.attn.*, transformer_blocks.0",
            style={"description_width": "90px"},
            layout={"width": "min(600px, 100%)"},
        )
        self.add = W.Button(
            description="Keep this pattern",
            tooltip="Layers that the pattern hits stay unquantized",
            layout={"width": "auto"},
        )
        self.view = W.Dropdown(
            description="Listed as",
            options=list(_VIEWS),
            style={"description_width": "90px"},
            layout={"width": "360px"},
        )
        self.choices = W.SelectMultiple(
            rows=8,
            description="Linear layers",
            style={"description_width": "90px"},
            layout={"width": "min(760px, calc(100% - 4px))"},
        )
        self.choices.add_class("ql-choices")
        self.add_chosen = W.Button(
            description="Keep the marked one",
            disabled=True,
            tooltip="They stay unquantized",
            layout={"width": "auto", "align_self": "flex-start", "margin": _INDENTED},
        )
        self.preview, self.costs, self.error = (
            W.HTML(layout={"margin": _INDENTED}),
            W.HTML(),
            W.HTML(),
        )
        self.preview.add_class("ql-preview")
        self.error.add_class("ql-error")
        self.suggestions = W.HBox(layout={"flex_flow": "row wrap", "margin": _INDENTED})
        self.chips = W.HBox(layout={"flex_flow": "row wrap"})
        self.chips.add_class("ql-chips")
        self.on_click(self.add, lambda: self._add(self.search.value))
        self.on_click(self.add_chosen, lambda: self.keep(*self.choices.value))
        self.on_change((self.search, self.view), self._draw_choices)
        self.on_change((self.choices,), self._draw_add_chosen)
        # Enter. What the front end sends for it is all that `Text.on_submit` listens to as well.
        self.search.on_msg(
            self.guarded(
                lambda _, content, __: (
                    content.get("event") == "submit" and self._add(self.search.value)
                )
            )
        )
        self.observe(lambda _: self._draw(), names="value")
        self.children = (
            W.HBox((self.search, self.add), layout={"flex_flow": "row wrap"}),
            self.preview, self.suggestions,
            self.view, self.choices, self.add_chosen,
            self.error, self.chips, self.costs,
        )  # fmt: skip

    # Errors of handlers are shown, as in a panel.
    guarded, on_click, on_change = Panel.guarded, Panel.on_click, Panel.on_change
    show_error = Panel.show_error

    @traitlets.validate("value")
    def _only_patterns(self, proposal: Any) -> tuple[str, ...]:
        return Recipe(skip=proposal["value"]).skip

    def _add(self, pattern: str) -> None:
        if pattern.strip():
            self.show_error(None)
            self.keep(pattern.strip())
            self.search.value = ""

    # --- looking at the model ---

    def _show_layers(self, report: pandas.DataFrame) -> None:
        self._base, self._layers = report, layers_of(report)
        self._draw()
        self.loaded, self.busy = True, False

    def _show_failure(self, error: BaseException) -> None:
        self._failure = error
        self._draw()
        self.busy = False

    def _dead_pattern(self) -> ArgumentError | None:
        try:
            check_patterns(self.value if self._layers else (), self._layers)
        except ArgumentError as error:
            return error
        return None

    # --- drawing ---

    def _draw(self) -> None:
        with self._lock:
            self.show_error(self.problem)
            self._draw_choices()
            self._draw_chips()
            self.costs.value = self.costs_html()

    def _draw_choices(self) -> None:
        with self._lock:
            text = self.search.value.strip()
            self.add.disabled = not text
            known = bool(self._layers)
            self.choices.disabled = self.view.disabled = not known
            self._draw_preview(text)
            marked = self.choices.value
            options = self._options(text) if known else []
            if list(options) != list(self.choices.options):
                self.choices.options = options
                values = {value for _, value in options}
                self.choices.value = tuple(p for p in marked if p in values)

    def _draw_add_chosen(self) -> None:
        marked = len(self.choices.value)
        self.add_chosen.disabled = not marked
        self.add_chosen.description = (
            f"Keep the {marked} marked ones" if marked > 1 else "Keep the marked one"
        )

    def _options(self, text: str) -> list[tuple[str, str]]:
        """Return the listed patterns that the search finds, with what they stand for."""
        listed: dict[str, list[tuple[str, Layer]]] = {}
        for name, layers in self._layers.items():
            for layer in layers:
                for pattern in _VIEWS[self.view.value](layer):
                    listed.setdefault(pattern, []).append((name, layer))
        hit = {
            (name, path)
            for name, layers in self._layers.items()
            for path in match_layers((text,), layers, name)
        }
        single, sought = self.view.value == _SINGLE, text.casefold()
        return [
            (f"{pattern}  ·  {_shape(ls[0][1]) if single else _counted(len(ls))}", pattern)
            for pattern, ls in listed.items()
            if sought in pattern.casefold() or any((n, layer.path) in hit for n, layer in ls)
        ]

    def _draw_preview(self, text: str) -> None:
        hints: list[str] = []
        if self._base is None:
            said = "Reading which layers there are…" if self.busy and not self._failure else ""
        elif not text:
            said = f"{_counted(len(self._base))} in {' and '.join(self._layers)}"
        else:
            try:
                check_patterns((text,), self._layers)
                said = Raw(f"As a pattern, {code(text)} {_in_words(skip_cost(self._base, [text]))}")
            except ArgumentError as error:
                hints = re.findall(r"'([^']+)'", str(error).partition("did you mean ")[2])
                near = " Near it:" if hints else ""
                said = Raw(f"As a pattern, {code(text)} hits no layer.{near}")
        self.preview.value = note(said) if said else ""
        self._draw_suggestions(hints)

    def _draw_suggestions(self, hints: list[str]) -> None:
        if hints == [button.description for button in self.suggestions.children]:
            return
        buttons = []
        for hint in hints:
            button = W.Button(description=hint, layout={"width": "auto", "max_width": "none"})
            button.tooltip = f"Write {hint}"
            self.on_click(button, lambda hint=hint: self._write(hint))
            buttons.append(button)
        self.suggestions.children = tuple(buttons)

    def _write(self, text: str) -> None:
        self.search.value = text
        self.search.focus()

    def _draw_chips(self) -> None:
        # Those that stay are the same widgets, so that the keyboard's place isn't lost.
        self._chips = {p: self._chips.get(p) or self._chip(p) for p in self.value}
        self.chips.children = tuple(self._chips.values())

    def _chip(self, pattern: str) -> W.Button:
        chip = W.Button(
            description=f"{pattern}  ✕",
            tooltip=f"No longer keep {pattern}",
            layout={"width": "auto", "max_width": "none"},
        )
        chip.add_class("ql-chip")

        def drop() -> None:
            self.drop(pattern)
            self.search.focus()  # what had it is gone

        self.on_click(chip, drop)
        return chip


def _starred(path: str) -> str:
    """Return a path with a star for its first number: which block of a list it lies in."""
    return re.sub(r"(^|\.)\d+(?=\.)", r"\1*", path, count=1)


def _containers(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _counted(count: int) -> str:
    return format_count(count, "Linear layer")


def _shape(layer: Layer) -> str:
    return f"{layer.in_features} → {layer.out_features}"


def _added(count: int) -> str:
    return f"+{format_bytes(count)}" if count else ABSENT


def _cost_cells(cost: SkipCost, of: int | None = None) -> tuple[str, ...]:
    return (
        f"{cost.layers} of {of}" if of else str(cost.layers),
        *(_added(cost.added_bytes[weights]) for weights in QUANTIZED),
        cost.in_diffusers,
    )


def _in_words(cost: SkipCost) -> str:
    added = ", ".join(f"{format_bytes(n)} at {weights}" for weights, n in cost.added_bytes.items())
    return escaped(
        f"hits {_counted(cost.layers)}; keeping them adds {added}. "
        f"Plain Diffusers {cost.in_diffusers}."
    )
