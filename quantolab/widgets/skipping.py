"""The panel about skip lists: what each hits, what that costs, what a word a layer is worth."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from ..errors import ArgumentError
from ..models.layers import KEEP_FP32
from ..recipes import COMPUTE_DTYPES, Recipe
from ..report.markup import Raw, bar, code, note, table
from ..units import (
    ABSENT,
    format_bytes,
    format_count,
    format_decibels,
    format_ratio,
    format_seconds,
)
from ..weights import DEFAULT, QUANTIZED
from .background import Assistant
from .call_text import call
from .choosing import read_budgets, read_number
from .model_field import LABEL, WRAP, ModelField
from .skip_picker import SkipCost, SkipPicker
from .working_panel import WorkingPanel, run_button

if TYPE_CHECKING:
    import pandas

    from ..report.advised import AdviceCurve
    from ..run.session import Progress

__all__ = ["SkipExplorer", "SkipPicker", "skip_explorer"]

_QUANTIZED_COLOUR, _KEPT_COLOUR = "#4c86c6", "#d98a29"
_KEPT_MARK = f"<span style='color:{_KEPT_COLOUR}'>■</span>"
_STATIC_ROWS = 60  # kept layers that are listed where no kernel is alive

_ROWS = {
    "all layers": lambda row: True,
    "what is kept": lambda row: row["skipped"],
    "where plain Diffusers differs": lambda row: row["skipped"] != row["diffusers_skips"],
}


def skip_explorer(
    model=None, *, variant: str | None = None, revision: str | None = None
) -> SkipExplorer:
    """Return a panel in which a skip list is put together, with its price, before any loading.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id (configuration files only).
    variant, revision : str, optional
        As for `skip_report`.

    Examples
    --------
    >>> panel = skip_explorer("demo")
    >>> panel                                              # in a cell of its own
    >>> ql.load("demo", panel.recipe)                      # in the next one
    """
    return SkipExplorer(model, variant=variant, revision=revision)


class SkipExplorer(WorkingPanel):
    """A skip picker, the whole report beneath it, and what advice is worth; see `skip_explorer`."""

    def __init__(
        self, model=None, *, variant: str | None = None, revision: str | None = None
    ) -> None:
        super().__init__("skip-explorer", "Layers to keep unquantized")
        self._drawing = threading.RLock()  # the picker's look-up and the user's clicks both draw
        self.model_field = ModelField(
            model, show_error=self.show_error, variant=variant, revision=revision, variants=True
        )
        self.weights = W.Dropdown(
            description="Weights", options=QUANTIZED, value=DEFAULT, style=LABEL,
            layout={"width": "190px"},
        )  # fmt: skip
        self.dtype = W.Dropdown(
            description="Compute in", options=COMPUTE_DTYPES, style=LABEL, layout={"width": "220px"}
        )
        self.run_button = W.Button(
            description="Read the layers", tooltip="Looks at the model's configuration again"
        )
        self.run_button.add_class("ql-run")
        self.picker = SkipPicker(load=False, assistant=Assistant())
        self.totals, self.table = W.HTML(), W.HTML()
        self.rows = W.Dropdown(
            description="Show", options=list(_ROWS), style=LABEL, layout={"width": "320px"}
        )
        self.curve: AdviceCurve | None = None
        """What advice is worth in pictures, once it was measured."""
        row = W.HBox((self.dtype, self.weights, self.run_button), layout=WRAP)
        # The sentence in the status line sums up the picker, so the report stands below it.
        self.children = (
            self.heading, self.model_field, row, self.picker, self.status, self.error,
            self.totals, self.rows, self.table, self._advice_parts(), self._code,
        )  # fmt: skip
        self.on_click(self.run_button, self.run)
        self.on_change((self.dtype,), self.run)
        self.on_change((self.weights, self.rows), self._draw)
        self.model_field.observe(self.guarded(lambda _: self.run()), "chosen")
        self.picker.observe(self.guarded(lambda _: self._draw()), ["value", "loaded", "busy"])
        self.run()

    def _advice_parts(self) -> W.Box:
        """Return what measures the curve of advice, and where it is shown."""
        self.budgets = W.Text(
            description="Budgets", placeholder="2.5MB, 4MB, 6MB", style=LABEL,
            layout={"width": "min(420px, 100%)"},
        )  # fmt: skip
        self.steps = W.Text(
            description="Steps", placeholder="model's own", style=LABEL, layout={"width": "200px"}
        )
        self.advise_button = run_button(
            "Show what advice is worth",
            "Advises a recipe for each budget, makes pictures with all of them and compares",
            primary=False,
        )
        self.add_starter(self.advise_button, self.advise)
        self.on_change((self.budgets, self.steps), self.refresh)
        self.cost, self.plot = W.HTML(), W.HTML()
        self.on_change((self.budgets,), self._say_cost)
        return W.VBox((
            W.HTML("<b>A word a layer: picture quality against bytes</b>"),
            W.HBox((self.budgets, self.steps, self.advise_button, self.cancel_button), layout=WRAP),
            self.cost, self.progress, self.plot,
        ))  # fmt: skip

    # --- for programs ---

    def advise(self, wait: bool = False) -> None:
        """Measure what advice is worth for the budgets, in the background; then `curve` is there.

        Raises
        ------
        ArgumentError
            If no budget is named, or the panel is at work.
        """
        model, options = self.model_field.model, self._curve_options()
        budgets = read_budgets(self.budgets.value)
        if not budgets:
            raise ArgumentError("no budget is named; write sizes such as 2.5MB, 4MB")

        def job() -> AdviceCurve:
            from ..experiments.advice_curve import advice_curve

            cancel = self.work.cancel_asked
            return advice_curve(model, budgets, **options, watch=self._show_progress, cancel=cancel)

        self.begin("Starting", job, self._show_curve, can_cancel=True)
        if wait:
            self.work.wait()

    def run(self, wait: bool = False) -> None:
        """Read the model's layers, in the background; no weight is touched."""
        if self.model_field.source is None:
            self.picker.clear()  # the field says why
        else:
            name = self.model_field.component_name
            self.picker.set_model(self.model_field.pinned, name, self.dtype.value)
        if wait:
            self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the layers are known, or can't be; return whether that came true in time."""
        found = self.model_field.wait(timeout) and self.picker.wait(timeout)
        return found and super().wait(timeout)

    @property
    def skip(self) -> tuple[str, ...]:
        """The patterns; set them to choose by program."""
        return self.picker.value

    @skip.setter
    def skip(self, patterns: tuple[str, ...]) -> None:
        self.picker.value = patterns

    @property
    def recipe(self) -> Recipe:
        """The recipe that the panel stands at."""
        name = self.model_field.component_name
        return Recipe(self.weights.value, self.skip, (name,) if name else ())

    @property
    def report(self) -> pandas.DataFrame | None:
        """What `skip_report` returns for this model and these patterns; None until it is known.

        Raises
        ------
        ArgumentError
            If a pattern hits no layer.
        """
        return self.picker.report

    # --- what a panel shows ---

    @property
    def call(self) -> str:
        """The library calls that give `report` and `recipe`."""
        options = {
            "component": self.model_field.component_name,
            "dtype": None if self.dtype.value == COMPUTE_DTYPES[0] else self.dtype.value,
            **self.model_field.named,
        }
        skip = (list(self.skip),) if self.skip else ()
        report = call("ql.skip_report", self.model_field.model, *skip, **options)
        recipe = self.recipe
        made = call(
            "ql.Recipe", recipe.weights,
            skip=recipe.skip or None, components=recipe.components or None,
        )  # fmt: skip
        lines = [f"report = {report}", f"recipe = {made}"]
        if budgets := read_budgets(self.budgets.value):
            options = self._curve_options()
            lines.append(call("ql.plot_advice", self.model_field.model, list(budgets), **options))
        return "\n".join(lines)

    def static_html(self) -> str:
        """Return totals, patterns and kept layers."""
        report = self._marked()
        if report is None:
            return super().static_html()
        rows = [row for row in report.to_dict("records") if row["skipped"]]
        more = len(rows) - _STATIC_ROWS
        return "".join((
            note(f"{self.model_field.model}: {self._sentence(report)}"),
            _totals_table(report, self.picker.cost),
            self.picker.costs_html(),
            _layer_table(rows[:_STATIC_ROWS]) if rows else "",
            note(f"And {more} more.") if more > 0 else "",
            self.plot.value,
        ))  # fmt: skip

    # --- what advice is worth ---

    def _curve_options(self) -> dict[str, Any]:
        """Return the options of the call that differ from what the library takes by itself."""
        options = {
            "component": self.model_field.component_name,
            "steps": read_number(self.steps.value, int),
            "dtype": None if self.dtype.value == COMPUTE_DTYPES[0] else self.dtype.value,
        }
        found = {name: value for name, value in options.items() if value is not None}
        return found | self.model_field.named

    def _say_cost(self) -> None:
        """Say before anything starts what measuring takes."""
        from ..experiments.advising import advice_cost

        self.cost.value = ""
        if read_budgets(self.budgets.value) and self.model_field.source is not None:
            options = self._curve_options()
            self.cost.value = note(advice_cost(self.model_field.model, **options) + ".")

    def _show_progress(self, progress: Progress) -> None:
        if self.work.cancel_asked.is_set():
            return
        self.say(progress.says.capitalize() + "…")
        togo = "" if progress.eta_seconds is None else format_seconds(progress.eta_seconds)
        text = f"{progress.done} of {progress.total}" + (f", {togo} to go" if togo else "")
        self.show_progress(progress.done, progress.total, text)

    def _show_curve(self, curve: AdviceCurve) -> None:
        from .drawing import curve_html

        self.curve = curve
        rows = [
            (format_bytes(p.budget_bytes), format_bytes(p.weight_bytes),
             format_decibels(p.quality), code(str(p.recipe)))
            for p in curve.advised
        ]  # fmt: skip
        heads = ("budget", "held", "PSNR", "recipe")
        self.plot.value = curve_html(curve) + table(heads, rows, align="rrrl")
        self.say(f"{format_count(len(curve.advised), 'recipe')} advised and judged by pictures.")

    # --- drawing ---

    def _draw(self) -> None:
        with self._drawing:
            self.refresh()
            report = self._marked()
            if report is None:
                self.say("Reading the model's layers…" if self.picker.busy else "")
                self.totals.value = self.table.value = ""
                return
            self.say(self._sentence(report))
            self.totals.value = _totals_table(report, self.picker.cost)
            wanted = _ROWS[self.rows.value]
            rows = [row for row in report.to_dict("records") if wanted(row)]
            self.table.value = _layer_table(rows, "24em") if rows else note("No layer.")
            self.refresh_static()

    def _marked(self) -> pandas.DataFrame | None:
        """Return the report, or None where there is none; the picker then shows why."""
        return None if self.picker.problem else self.report

    def _sentence(self, report: pandas.DataFrame) -> str:
        weights, kept = self.weights.value, int(report["skipped"].sum())
        added = self.picker.cost.added_bytes[weights]
        total = report.attrs["totals"][weights]["bytes"]
        said = f"At {weights}, {kept} of {len(report)} Linear layers stay unquantized"
        if added:
            said += (
                f", which adds {format_bytes(added)}: their weights take {format_bytes(total)} "
                f"instead of {format_bytes(total - added)}"
            )
        else:
            said += f"; their weights take {format_bytes(total)}"
        return f"{said} (unquantized {format_bytes(report['bytes_none'].sum())})."


def _totals_table(report: pandas.DataFrame, cost: SkipCost) -> str:
    """Return what the Linear weights take at each dtype, as a table with bars."""
    plain = int(report["bytes_none"].sum())
    rows = []
    for weights in QUANTIZED:
        total, added = report.attrs["totals"][weights]["bytes"], cost.added_bytes[weights]
        shares = (((total - added) / plain, _QUANTIZED_COLOUR), (added / plain, _KEPT_COLOUR))
        text = f"{weights}: {format_bytes(total)} of {format_bytes(plain)}"
        rows.append((
            weights, bar(shares, text), format_bytes(total),
            f"+{format_bytes(added)}" if added else ABSENT, format_ratio(total / plain),
        ))  # fmt: skip
    return table(
        (
            "weights",
            "",
            "all Linear weights",
            Raw(f"{_KEPT_MARK} for what is kept"),
            "of unquantized",
        ),
        rows,
        align="llrrr",
        caption="What the Linear weights take; biases, norms and the rest come on top",
    )


def _layer_table(rows: list[dict[str, Any]], height: str = "") -> str:
    several = len({row["component"] for row in rows}) > 1
    return table(
        ("layer", "in → out", "here", "plain Diffusers", "unquantized", *QUANTIZED),
        [_layer_cells(row, several) for row in rows],
        align="lrll" + "r" * (1 + len(QUANTIZED)),
        height=height,
    )


def _layer_cells(row: dict[str, Any], several: bool) -> tuple[object, ...]:
    path = f"{row['component']}.{row['path']}" if several else row["path"]
    theirs = "keeps it" if row["diffusers_skips"] else "quantizes it"
    differs = row["skipped"] != row["diffusers_skips"]
    return (
        code(path),
        f"{row['in_features']} → {row['out_features']}",
        _what_happens(row),
        Raw(f"<span style='white-space:nowrap{';font-weight:600' * differs}'>{theirs}</span>"),
        format_bytes(row["bytes_none"]),
        *(format_bytes(row[f"bytes_{weights}"]) for weights in QUANTIZED),
    )


def _what_happens(row: dict[str, Any]) -> object:
    if not row["skipped"]:
        return "quantized"
    if row["pattern"] == KEEP_FP32:
        return KEEP_FP32
    if row["pattern"] in (row["path"], f"{row['component']}.{row['path']}"):
        return "kept: its own path"  # stands beside it
    return Raw(f"kept: {code(row['pattern'])}")
