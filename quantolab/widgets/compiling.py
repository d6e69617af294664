"""The panel about torch.compile: which recipes it takes, what it costs, when it pays."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from ..errors import ArgumentError
from ..experiments.compiling import WAYS, compile_report, report_of
from ..recipes import COMPUTE_DTYPES, Recipe
from ..records import OK
from ..report import compiled
from ..report.markup import note, table
from ..units import format_seconds
from ..weights import DEFAULT, REFERENCE, WORDS
from .backend_words import BackendWords
from .background import Assistant
from .call_text import call
from .choosing import read_number, read_size
from .model_field import LABEL, WRAP, ModelField, labelled_row
from .recipe_field import RecipeField
from .working_panel import WorkingPanel, run_button

if TYPE_CHECKING:
    import pandas

    from ..run.session import Progress
from ..run import REPEATS


def compile_explorer(
    model=None, *, variant: str | None = None, revision: str | None = None
) -> CompileExplorer:
    """Return a panel that compiles recipes in several ways and says whether that pays.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder of a pipeline in Diffusers layout, or a Hub id.
    variant, revision : str, optional
        As for `compile_report`.

    Examples
    --------
    >>> panel = compile_explorer("demo")
    >>> panel                                              # in a cell of its own
    >>> panel.report.sort_values("break_even_images")      # in the next one
    """
    return CompileExplorer(model, variant=variant, revision=revision)


class CompileExplorer(WorkingPanel):
    """`compile_report`, cell by cell; see `compile_explorer`."""

    def __init__(
        self, model=None, *, variant: str | None = None, revision: str | None = None
    ) -> None:
        super().__init__("compile", "Does compiling pay?")
        self.rows: tuple[dict[str, Any], ...] = ()
        self._planned: tuple[tuple[str, str], ...] = ()
        self._running: tuple[str, str] = ("", "")
        self._make_controls(model, variant, revision)
        self.fill(
            (
                self.model_field,
                labelled_row(
                    "Weights", (*(self.weights[word] for word in WORDS), self.others.button)
                ),
                self.others,
                labelled_row("Ways", self.ways.values()),
                self.recipe_field,
                W.HBox((self.steps, self.size, self.repeats), layout=WRAP),
                self.prompt,
                self.cost,
                W.HBox((self.run_button, self.cancel_button), layout=WRAP),
            ),
            (self.table, self.shown, self.plot),
        )
        controls = (*self.weights.values(), *self.ways.values(), *self._texts, self.repeats)
        self.on_change(controls, self._draw_cost)
        self.recipe_field.observe(self.guarded(lambda _: self._draw_cost()), "state")
        self.model_field.observe(self.guarded(lambda _: self._model_chosen()), "chosen")
        self.on_change((self.shown,), self._draw_plot)
        self._model_chosen()

    def _make_controls(self, model, variant: str | None, revision: str | None) -> None:
        self.model_field = ModelField(
            model, show_error=self.show_error, components=False, variant=variant,
            revision=revision, variants=True,
        )  # fmt: skip
        self.weights = {word: _box(word, word in (REFERENCE, DEFAULT)) for word in WORDS}
        self.others = BackendWords()
        self.weights |= self.others.boxes
        self.ways = {way: _box(way, way == "default") for way in WAYS}
        self.recipe_field = RecipeField(weights=False, assistant=Assistant())
        self.steps = _text("Steps", "as the model's default", "250px")
        self.size = _text("Size", "as it was made for, or 512x512", "310px")
        self.prompt = _text("Prompt", "one of the model's own, or a photograph", "min(720px, 100%)")
        self._texts = (self.steps, self.size, self.prompt)
        self.repeats = W.BoundedIntText(
            description="Repeats",
            value=REPEATS,
            min=1,
            max=1000,
            style=LABEL,
            layout={"width": "190px"},
        )
        self.run_button = run_button("Run", "Compiles and times each of them")
        self.add_starter(self.run_button, self.run)
        self.shown = W.Dropdown(
            description="Plot", style=LABEL, layout={"width": "min(420px, 100%)", "display": "none"}
        )
        self.cost, self.table, self.plot = W.HTML(), W.HTML(), W.HTML()

    # --- for programs ---

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The recipes that are chosen."""
        words = [word for word, box in self.weights.items() if box.value]
        return tuple(self.recipe_field.recipe(weights=word) for word in words)

    @property
    def report(self) -> pandas.DataFrame | None:
        """What `compile_report` returns; while it runs, and after a cancel, the finished rows."""
        return report_of(self.rows) if self.rows else None

    def run(self, wait: bool = False) -> None:
        """Compile and time all that is chosen, in the background; rows arrive one by one."""
        options = self._options()
        model, recipes, ways = self.model_field.model, list(self.recipes), options.pop("ways")
        if not recipes or not ways:
            raise ArgumentError("nothing is chosen: mark at least one weights dtype and one way")

        def job() -> pandas.DataFrame:
            return compile_report(
                model,
                recipes,
                ways=ways,
                **options,
                watch=self._show_progress,
                on_row=self._add_row,
                cancel=self.work.cancel_asked,
            )

        if not self.work.running:
            self.rows = ()
            self._planned = tuple((recipe.shown, way) for recipe in recipes for way in ways)
            self.shown.options, self.shown.layout.display = (), "none"
            self._draw()
        self.begin("Starting", job, self._show_all, can_cancel=True)
        if wait:
            self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; return whether that came true in `timeout` seconds."""
        return self.model_field.wait(timeout) and super().wait(timeout)

    # --- what a panel shows ---

    @property
    def call(self) -> str:
        """The library call that gives `report`."""
        recipes = [r.label if r == Recipe(r.weights) else r for r in self.recipes]
        return "report = " + call(
            "ql.compile_report", self.model_field.model, recipes, **self._options()
        )

    def static_html(self) -> str:
        """Return the table and the plot."""
        return (_table_html(self.rows) + self.plot.value) if self.rows else super().static_html()

    def _options(self) -> dict[str, Any]:
        """Return the options of the call that differ from what the library takes by itself."""
        _, dtype, device, *_ = self.recipe_field.state
        options = {
            "prompts": self.prompt.value.strip() or None,
            "ways": [way for way, box in self.ways.items() if box.value],
            "steps": read_number(self.steps.value, int),
            "size": read_size(self.size.value),
            "dtype": None if dtype == COMPUTE_DTYPES[0] else dtype,
            "device": None if device == "auto" else device,
            "repeats": self.repeats.value,
            **self.model_field.named,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _model_chosen(self) -> None:
        if self.model_field.source is not None:
            self.recipe_field.set_model(self.model_field.pinned)
        self._draw_cost()

    # --- while it runs, called in its thread ---

    def _show_progress(self, progress: Progress) -> None:
        label, _, way = (progress.label or "").rpartition(", ")
        if (label, way) != self._running:
            self._running = (label, way)
            self._draw()
        togo = "" if progress.eta_seconds is None else format_seconds(progress.eta_seconds)
        what = f"{progress.label}: {progress.stage}" if progress.label else progress.stage
        if not self.work.cancel_asked.is_set():
            self.say(what.capitalize() if not progress.label else what)
        text = f"{progress.done} of {progress.total} pictures"
        self.show_progress(progress.done, progress.total, f"{text}, {togo} to go" if togo else text)

    def _add_row(self, row: dict[str, Any]) -> None:
        self.rows = (*self.rows, row)
        self._draw()
        self._offer_plots()
        self.refresh_static()

    def _show_all(self, report: pandas.DataFrame) -> None:
        ok = int((report["status"] == OK).sum())
        self.say(f"Finished: {ok} of {len(report)} compiled. {self._advice()}")
        self._draw()

    def _ended(self, show: Any, value: Any) -> None:
        self._planned, self._running = (), ("", "")
        super()._ended(show, value)
        self._draw()

    # --- drawing ---

    def _draw_cost(self) -> None:
        self.refresh()
        cells = len(self.recipes) * sum(box.value for box in self.ways.values())
        each = 3 + 2 * self.repeats.value
        self.cost.value = note(
            f"{cells} to compile, each in a fresh process without any cache, with {each} pictures "
            f"each: {self.repeats.value} eager, as many compiled, and 3 to warm up and to try "
            "another size."
        )

    def _draw(self) -> None:
        waiting = self._planned[len(self.rows) :]
        self.table.value = _table_html(self.rows, waiting, self._running)

    def _offer_plots(self) -> None:
        names = [(compiled.name(row), i) for i, row in enumerate(self.rows) if row["status"] == OK]
        if not names:
            return
        before = self.shown.value
        self.shown.options = names
        self.shown.value = names[0][1] if before is None else before
        self.shown.layout.display = ""

    def _draw_plot(self) -> None:
        chosen = self.shown.value
        self.plot.value = "" if chosen is None else _plot_html(self.rows[chosen])

    def _advice(self) -> str:
        paying = [row for row in self.rows if compiled.pays(row)]
        if not paying:
            return "Compiling isn't shown to pay for any of them."
        best = min(paying, key=lambda row: row["break_even_images"])
        return f"{compiled.name(best)} pays soonest: {compiled.payback_words(best)}."


def _table_html(
    rows: tuple[dict[str, Any], ...],
    waiting: tuple[tuple[str, str], ...] = (),
    running: tuple[str, str] = ("", ""),
) -> str:
    """Return finished rows, then those to come; reasons and conditions below."""
    if not rows and not waiting:
        return ""
    cells = [compiled.cells(row) for row in rows]
    for cell in waiting:
        said = "running" if cell == running else "waiting"
        cells.append((*cell, said, *[""] * (len(compiled.HEADERS) - 3)))
    notes = compiled.notes(rows)
    return table(compiled.HEADERS, cells, align=compiled.ALIGN) + "".join(map(note, notes))


def _plot_html(row: dict[str, Any]) -> str:
    """Return the plot twice, for light and for dark pages; panel.css shows the one that fits."""
    from ..report.lettering import png
    from ..report.payback import draw_payback, payback

    values, images = payback(row), []
    for dark, style in ((False, "background:#fff;border-radius:4px"), (True, "display:none")):
        figure = draw_payback(values, dark=dark).get_figure(root=True)
        data = base64.b64encode(png(figure)).decode()
        images.append(
            f"<img class='ql-on-{'dark' if dark else 'light'}' style='width:640px;max-width:100%;"
            f"{style}' src='data:image/png;base64,{data}' "
            f"alt='Seconds after so many pictures, eager and compiled: {html.escape(values.says)}'>"
        )
    return "".join(images)


def _box(text: str, value: bool) -> W.Checkbox:
    return W.Checkbox(description=text, value=value, indent=False, layout={"width": "130px"})


def _text(label: str, placeholder: str, width: str) -> W.Text:
    return W.Text(
        description=label, placeholder=placeholder, style=LABEL, layout={"width": width},
        continuous_update=False,
    )  # fmt: skip
