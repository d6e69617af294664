"""The panel that saves what was quantized, proves what was saved, and loads it again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from ..errors import ArgumentError
from ..recipes import COMPUTE_DTYPES, Recipe, slug
from ..report.markup import bar, note, pairs, table
from ..units import ABSENT, format_bytes, format_digits, format_ratio, format_seconds
from .call_text import Code, call
from .model_field import LABEL, WRAP, ModelField
from .recipe_field import RecipeField
from .working_panel import WorkingPanel, run_button

if TYPE_CHECKING:
    from ..saved.verifying import VerifyReport

_FILE_COLOUR, _MEMORY_COLOUR, _PLAIN_COLOUR = "#4c86c6", "#3f9b6c", "rgba(128,128,128,.8)"


def save_panel(model=None, *, variant: str | None = None, revision: str | None = None) -> SavePanel:
    """Return a panel that saves a quantized component and shows that it comes back unchanged.

    With words for several components it saves the whole pipeline.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id.
    variant, revision : str, optional
        As for `load`.

    Examples
    --------
    >>> panel = save_panel("demo")
    >>> panel                                              # in a cell of its own
    >>> transformer = ql.load_saved(panel.saved)           # in the next one
    """
    return SavePanel(model, variant=variant, revision=revision)


@dataclass(frozen=True)
class SavedFacts:
    """What saving gave."""

    folder: Path
    recipe: Recipe
    dtype: str
    plain_bytes: int
    """What the component would hold unquantized, from its shapes."""
    memory_bytes: int
    """What it holds quantized."""
    disk_bytes: int
    """Of all files in the folder."""
    load_seconds: float
    """To read and quantize the original."""
    save_seconds: float


class SavePanel(WorkingPanel):
    """Save, verify in fresh processes, load; see `save_panel`."""

    def __init__(
        self, model=None, *, variant: str | None = None, revision: str | None = None
    ) -> None:
        super().__init__("save", "Save a quantized model")
        self.saved: Path | None = None
        self.facts: SavedFacts | None = None
        self.reports: tuple[VerifyReport, ...] = ()
        self.module: Any = None
        self.load_seconds: float | None = None
        self._proposed = ""
        self.model_field = ModelField(
            model, show_error=self.show_error, variant=variant, revision=revision, variants=True
        )
        self.recipe_field = RecipeField(mixed=True)
        self.folder = W.Text(
            description="Folder", style=LABEL, layout={"width": "min(720px, 100%)"},
            placeholder="where to; a model saved there before is replaced, anything else is not",
        )  # fmt: skip
        self.save_button = run_button("Save", "Loads, quantizes and saves the component")
        self.verify_button = run_button(
            "Verify", "Loads it in fresh processes and compares every weight", primary=False
        )
        self.load_button = run_button("Load", "Loads what was saved, into `module`", primary=False)
        self.add_starter(self.save_button, self.run)
        self.add_starter(self.verify_button, self.verify)
        self.add_starter(self.load_button, self.load)
        self.result = W.HTML()
        buttons = W.HBox(
            (self.save_button, self.verify_button, self.load_button, self.cancel_button),
            layout=WRAP,
        )
        self.fill((self.model_field, self.recipe_field, self.folder, buttons), (self.result,))
        self.model_field.observe(self.guarded(lambda _: self._model_chosen()), "chosen")
        self.recipe_field.observe(self.guarded(lambda _: self._propose()), "state")
        self.on_change((self.folder,), self.refresh)
        self._model_chosen()

    # --- for programs ---

    @property
    def recipe(self) -> Recipe:
        """The recipe that the controls stand at; components are named by `component` instead.

        Only where several have words of their own it names them itself.
        """
        return self.recipe_field.recipe()

    @property
    def is_whole(self) -> bool:
        """Whether the recipe is for several components, so that the pipeline is saved."""
        return self.recipe_field.is_mixed and len(self.recipe.named_components) > 1

    @property
    def report(self) -> VerifyReport | None:
        """What comparing gave; of several components the first that isn't as it was, or the first.

        None before anything was compared.
        """
        return next((r for r in self.reports if not r.ok), next(iter(self.reports), None))

    def run(self, wait: bool = False) -> None:
        """Load, quantize and save in the background; then `saved` is there."""
        save = _save_pipeline if self.is_whole else _save
        arguments = (
            self.model_field.model, self.recipe, self.model_field.component_name,
            self.recipe_field.dtype.value, self.recipe_field.device.value, self._target(),
            self.model_field.named,
        )  # fmt: skip
        self.begin("Loading, quantizing and saving", lambda: save(*arguments), self._show_saved)
        if wait:
            self.wait()

    def verify(self, wait: bool = False) -> None:
        """Reload the folder in fresh processes and compare; then `report` is there.

        Of a pipeline each quantized component is compared: `reports` has them all.
        """
        folder, device, model = (
            self._target(), self.recipe_field.device.value, self.model_field.model
        )  # fmt: skip
        named = self.model_field.named
        components: tuple[str | None, ...] = (self.model_field.component_name,)
        if self.is_whole:
            components = self.recipe.named_components

        def watch(what: str, done: int, total: int) -> None:
            if not self.work.cancel_asked.is_set():
                self.say(f"Comparing: {what} ({done + 1} of {total})…")

        def job() -> tuple[VerifyReport, ...]:
            from ..saved.verifying import verify_saved

            cancel = self.work.cancel_asked
            options = {"device": device, "cancel": cancel, "watch": watch, **named}
            return tuple(
                verify_saved(folder, model, component=component, **options)
                for component in components
            )

        self.begin(
            "Reloading in fresh processes and comparing", job, self._show_verified, can_cancel=True
        )
        if wait:
            self.wait()

    def load(self, wait: bool = False) -> None:
        """Load what was saved, in the background; then `module` is there."""
        folder, device = self._target(), self.recipe_field.device.value

        def job() -> tuple[Any, float]:
            from ..saved.doors import load_saved

            started = time.perf_counter()
            module = load_saved(folder, device=device)
            return module, time.perf_counter() - started

        self.begin("Loading", job, lambda loaded: self._show_loaded(*loaded))
        if wait:
            self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; return whether that came true in `timeout` seconds."""
        return self.model_field.wait(timeout) and super().wait(timeout)

    # --- what a panel shows ---

    @property
    def call(self) -> str:
        """The library calls that do the same."""
        name = self.model_field.component.value or "transformer"
        component = self.model_field.component_name
        _, dtype, device, *_ = self.recipe_field.state
        device = None if device == "auto" else device
        dtype = None if dtype == COMPUTE_DTYPES[0] else dtype
        model, folder = self.model_field.model, self.folder.value.strip() or "saved-model"
        named = self.model_field.named
        components: tuple[str | None, ...] = (component,)
        options = {"dtype": dtype, "device": device, **named}
        if self.is_whole:
            name, components = "pipe", self.recipe.named_components
            loaded = call("ql.load_pipeline", model, self.recipe, **options)
        else:
            loaded = call("ql.load", model, self.recipe, component=component, **options)
        verified = (
            call("ql.verify_saved", Code("folder"), model, component=one, device=device, **named)
            for one in components
        )
        return "\n".join((
            f"{name} = {loaded}",
            f"folder = {call('ql.save', Code(name), folder)}",
            *verified,
            f"{name} = {call('ql.load_saved', Code('folder'), device=device)}",
        ))  # fmt: skip

    def static_html(self) -> str:
        """Return sizes, times and differences."""
        return self.result.value or super().static_html()

    # --- what comes of it ---

    def _target(self) -> Path:
        if not self.folder.value.strip():
            raise ArgumentError("no folder is named; write where the model is saved")
        return Path(self.folder.value.strip()).expanduser()

    def _model_chosen(self) -> None:
        if self.model_field.source is not None:
            self.recipe_field.set_model(
                self.model_field.pinned, self.model_field.component_name, self.model_field.source
            )
        self._propose()

    def _propose(self) -> None:
        """Name a folder after model and recipe, unless somebody has written another one."""
        if self.folder.value in ("", self._proposed):
            model = Path(self.model_field.model).name
            part = "" if self.is_whole else self.model_field.component.value
            self._proposed = slug(f"{model} {part} {self.recipe}")
            self.folder.value = self._proposed
        self.refresh()

    def _show_saved(self, facts: SavedFacts) -> None:
        self.facts, self.saved, self.reports = facts, facts.folder, ()
        self.module = self.load_seconds = None
        self.say(f"Saved in {facts.folder}. Verify shows that it comes back unchanged.")
        self._draw()

    def _show_verified(self, reports: tuple[VerifyReport, ...]) -> None:
        self.reports = reports
        self.saved = self._target() if len(reports) > 1 else Path(reports[0].folder)
        self.say(
            "Verified: everything that was compared is equal." if all(r.ok for r in reports)
            else "What comes back differs from what was saved."
        )  # fmt: skip
        self._draw()

    def _show_loaded(self, module: Any, seconds: float) -> None:
        self.module, self.load_seconds = module, seconds
        self.say(f"Loaded in {format_seconds(seconds)}; in code it is this panel's .module.")
        self._draw()

    def _draw(self) -> None:
        parts = []
        if self.facts is not None:
            parts.append(_saved_html(self.facts))
        for report in self.reports:
            parts.append(_verified_html(report, len(self.reports) > 1))
        if self.module is not None:
            parts.append(_loaded_html(self.module, self.load_seconds))
        self.result.value = "".join(parts)


def _save(
    model: str,
    recipe: Recipe,
    component: str | None,
    dtype: str,
    device: str,
    folder: Path,
    named: dict[str, str],
) -> SavedFacts:
    """Load, quantize and save a component; nothing is loaded for a folder that can't be used."""
    from ..loading.component import load
    from ..measure.held_bytes import weight_bytes
    from ..models.skeleton import build_skeleton
    from ..models.source import find_model
    from ..planning.predict import predict_weight_bytes
    from ..saved.doors import save
    from ..saved.writing import check_replaceable

    check_replaceable(folder)
    started = time.perf_counter()
    module = load(model, recipe, component, dtype=dtype, device=device, **named)
    loaded = time.perf_counter()
    save(module, folder)
    saved = time.perf_counter()
    part = find_model(model, weights=False, **named).component(component)
    return SavedFacts(
        folder=folder,
        recipe=recipe,
        dtype=dtype,
        plain_bytes=predict_weight_bytes(build_skeleton(part, dtype=dtype), {}, dtype),
        memory_bytes=weight_bytes(module),
        disk_bytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        load_seconds=loaded - started,
        save_seconds=saved - loaded,
    )


def _save_pipeline(
    model: str,
    recipe: Recipe,
    component: str | None,
    dtype: str,
    device: str,
    folder: Path,
    named: dict[str, str],
) -> SavedFacts:
    """Load, quantize and save a whole pipeline; `component` doesn't matter."""
    from ..loading.pipelines import load_pipeline
    from ..measure.held_bytes import weight_bytes
    from ..planning.plan import PIPELINE, plan
    from ..saved.doors import save
    from ..saved.writing import check_replaceable
    from ..weights import REFERENCE

    check_replaceable(folder)
    rows = plan(model, REFERENCE, dtype=dtype, **named).set_index("component")
    started = time.perf_counter()
    pipe = load_pipeline(model, recipe, dtype=dtype, device=device, **named)
    loaded = time.perf_counter()
    save(pipe, folder)
    saved = time.perf_counter()
    return SavedFacts(
        folder=folder,
        recipe=recipe,
        dtype=dtype,
        plain_bytes=int(rows["weight_bytes"][PIPELINE]),
        memory_bytes=weight_bytes(pipe),
        disk_bytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        load_seconds=loaded - started,
        save_seconds=saved - loaded,
    )


def _saved_html(facts: SavedFacts) -> str:
    sizes = (
        ("unquantized, in memory", facts.plain_bytes, _PLAIN_COLOUR),
        ("quantized, in memory", facts.memory_bytes, _MEMORY_COLOUR),
        ("quantized, on disk", facts.disk_bytes, _FILE_COLOUR),
    )
    most = max(count for _, count, _ in sizes)
    rows = [
        (name, bar([(count / most, colour)], f"{name}: {format_bytes(count)}"),
         format_bytes(count), format_ratio(count / facts.plain_bytes))
        for name, count, colour in sizes
    ]  # fmt: skip
    took = (
        f"Reading and quantizing took {format_seconds(facts.load_seconds)}, writing "
        f"{format_seconds(facts.save_seconds)}."
    )
    caption = f"{facts.recipe}, {facts.dtype}, in {facts.folder}"
    heads = ("", "", "bytes", "of unquantized")
    return table(heads, rows, align="llrr", caption=caption) + note(took)


def _verified_html(report: VerifyReport, several: bool = False) -> str:
    weights, outputs = report.weights_difference, report.output_difference
    said = ABSENT if outputs is None else _difference(outputs)
    rows = [("component", Path(report.folder).name)] if several else []
    rows += [
        (
            "greatest difference of weights",
            _difference(weights) if weights else "0, equal to the last bit",
        ),
        ("greatest difference of outputs", f"{said} ({report.output_reference})"),
        *_relative(report.output_relative_difference),
        ("time to load it", _times(report)),
        ("plain Diffusers loads it", "yes" if report.diffusers_loads else "no"),
    ]
    if report.diffusers_output_difference is not None:
        rows.append(("its outputs differ by", _difference(report.diffusers_output_difference)))
        rows += _relative(report.diffusers_relative_difference)
    if report.diffusers_reason:
        name = "to heed" if report.diffusers_loads else "why not"
        rows.append((name, report.diffusers_reason))
    rows += [("not compared", what) for what in report.not_compared]
    return pairs(rows) + note(
        "Found by loading in fresh processes; times are without imports, files in the system's "
        "cache."
    )


def _loaded_html(module: Any, seconds: float) -> str:
    report = getattr(module, "quantize_report", None)  # a pipeline has none
    held = f", {format_bytes(report.weight_bytes)} of weights" if report is not None else ""
    return pairs([("loaded here", f"{type(module).__name__}{held}, in {format_seconds(seconds)}")])


def _relative(difference: float | None) -> list[tuple[str, str]]:
    return [("relative, by norms", _difference(difference))] if difference else []


def _difference(value: float) -> str:
    return format_digits(value)


def _times(report: VerifyReport) -> str:
    text = format_seconds(report.load_seconds)
    if report.quantize_seconds is None:
        return text
    anew, ratio = (
        format_seconds(report.quantize_seconds),
        report.quantize_seconds / report.load_seconds,
    )
    return f"{text}; quantizing anew: {anew}, {format_ratio(ratio)} as long"
