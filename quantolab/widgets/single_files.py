"""The panel that loads one .safetensors file, after saying what is in it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from ..errors import ArgumentError, ModelNotFoundError
from ..files.choosing import SUFFIXES
from ..recipes import COMPUTE_DTYPES
from ..report.markup import alert, note, pairs
from ..units import format_bytes, format_ratio, format_seconds
from .call_text import call
from .latest import Latest
from .model_field import LABEL, WRAP, ModelField
from .recipe_field import RecipeField
from .working_panel import WorkingPanel, run_button

if TYPE_CHECKING:
    import torch

    from ..loading.report import QuantizeReport
    from ..single_file.facts import SingleFileFacts


def single_file_loader() -> SingleFileLoader:
    """Return a panel that quantizes a model from one file, as models are often published.

    Examples
    --------
    >>> panel = single_file_loader()
    >>> panel                                              # in a cell of its own
    >>> pipe = FluxPipeline.from_pretrained(folder, transformer=panel.module)
    """
    return SingleFileLoader()


class SingleFileLoader(WorkingPanel):
    """Says what a file holds as soon as it is chosen, and loads it; see `single_file_loader`."""

    def __init__(self) -> None:
        super().__init__("single-file", "Load a single file")
        self.module: torch.nn.Module | None = None
        self.seconds: float | None = None
        self.facts: SingleFileFacts | None = None
        self._looking = Latest()
        self._make_controls()
        listing = W.HBox((self.files, self.open_button), layout=WRAP)
        buttons = W.HBox((self.run_button,))
        self.take_config = W.Button(layout={"width": "auto", "display": "none"})
        self.take_config.add_class("ql-take-config")
        self.fill(
            (
                self.path,
                listing,
                self.config,
                self.about,
                self.take_config,
                self.recipe_field,
                buttons,
            ),
            (self.result,),
        )
        self.on_change((self.path,), self.look)
        self.on_change((self.files,), self._take_listed)
        self.on_click(self.open_button, lambda: self.show_folder(self.files.value))
        self.on_click(self.take_config, self._take_config)
        self.config.observe(self.guarded(lambda _: self.look()), "chosen")
        self.recipe_field.observe(self.guarded(lambda _: self.refresh()), "state")
        self.show_folder(Path.cwd())

    def _make_controls(self) -> None:
        self.path = W.Text(
            description="File",
            placeholder=f"a {SUFFIXES[0]} file, a folder to look in, or a file of the Hub "
            "(its address, OWNER/NAME/FILE)",
            continuous_update=False,
            style=LABEL,
            layout={"width": "min(720px, 100%)"},
        )
        self.files = W.Select(
            description="Choose", rows=6, style=LABEL, layout={"width": "min(600px, 100%)"}
        )
        self.files.add_class("ql-choices")
        self.open_button = W.Button(description="Open folder", layout={"width": "auto"})
        self.config = ModelField(
            show_error=self.show_error, label="Config from", empty=None, unquantized=False
        )
        self.config.name.placeholder = "the model's folder or Hub id; empty: beside the file"
        self.recipe_field = RecipeField()
        self.run_button = run_button("Load", "Reads the file and quantizes it meanwhile")
        self.add_starter(self.run_button, self.run)
        self.about, self.result = W.HTML(), W.HTML()
        self.about.add_class("ql-about")

    # --- for programs ---

    @property
    def file(self) -> str:
        """The path as it stands in the field."""
        return self.path.value.strip()

    @property
    def report(self) -> QuantizeReport | None:
        """What became of each layer of `module`; None until something is loaded."""
        return None if self.module is None else self.module.quantize_report

    def run(self, wait: bool = False) -> None:
        """Load the file in the background; then `module`, `seconds` and `report` are there."""
        if not self.file:
            raise ArgumentError(f"no file is chosen; choose a {SUFFIXES[0]} file or write its path")
        file, recipe, options = self.file, self.recipe_field.recipe(), self._options()

        def job() -> tuple[torch.nn.Module, float]:
            from ..single_file.reading import load_single_file

            started = time.perf_counter()
            module = load_single_file(file, recipe, **options)
            return module, time.perf_counter() - started

        if not self.work.running:
            self.module = self.seconds = None  # the new one may need the memory
            self.result.value = ""
        self.begin("Loading", job, lambda loaded: self._show_loaded(file, *loaded))
        if wait:
            self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for look-ups and for loading; return whether all ended in `timeout` seconds."""
        looked = self.config.wait(timeout) and self._looking.wait(timeout)
        return looked and super().wait(timeout)

    def show_folder(self, folder: str | Path) -> None:
        """List a folder's .safetensors files and its folders, to choose from."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise ModelNotFoundError(f"{str(folder)!r} is no folder")
        folder = folder.resolve()
        entries = sorted(folder.iterdir(), key=lambda path: path.name.casefold())
        shown = [path for path in entries if not path.name.startswith(".")]
        options = [("../", str(folder.parent))]
        options += [(f"{path.name}/", str(path)) for path in shown if path.is_dir()]
        options += [
            (f"{path.name}  ·  {format_bytes(path.stat().st_size)}", str(path))
            for path in shown
            if path.suffix.casefold() in SUFFIXES and path.is_file()
        ]
        self.files.options, self.files.tooltip = options, str(folder)
        self._take_listed()

    def look(self) -> None:
        """Read the chosen file's header, in the background."""
        self.refresh()
        self.show_error(None)
        self.facts = None
        if not self.file:
            self.about.value = ""
            return
        if _is_folder(self.file):
            self.show_folder(self.file)
            self.about.value = note(f"Folder {self.file}: choose one of its files in the list.")
            return
        file, config = self.file, self.config.model
        component = self.config.component_name

        def job() -> SingleFileFacts:
            from ..single_file.facts import single_file_facts

            return single_file_facts(file, config, component)

        self.about.value = note("Reading the header…")
        self._looking.start(job, done=self._show_facts, failed=self._show_no_facts)

    # --- what a panel shows ---

    @property
    def call(self) -> str:
        """The library call that loads the same."""
        name = self.config.component.value or "transformer"
        path = self.file or "model.safetensors"
        return f"{name} = " + call(
            "ql.load_single_file", path, self.recipe_field.recipe(), **self._options()
        )

    def static_html(self) -> str:
        """Return what the file holds and what became of it."""
        return (self.about.value + self.result.value) or super().static_html()

    def _options(self) -> dict[str, Any]:
        """Return the options that differ from what the library takes by itself."""
        _, dtype, device, *_ = self.recipe_field.state
        options = {
            "config": self.config.model,
            "component": self.config.component_name,
            "dtype": None if dtype == COMPUTE_DTYPES[0] else dtype,
            "device": None if device == "auto" else device,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _take_listed(self) -> None:
        """Take the marked file; a marked folder waits for its button, as arrow keys pass by."""
        path = self.files.value
        is_folder = path is None or Path(path).is_dir()
        self.open_button.disabled = path is None or not is_folder
        if not is_folder:
            self.path.value = path

    def _show_facts(self, facts: SingleFileFacts) -> None:
        self.facts = facts
        if facts.component is not None:
            self.recipe_field.set_model(str(facts.component.folder))
        self.about.value = _facts_html(facts)
        suggested = facts.published_as if facts.component is None else None
        self.take_config.layout.display = None if suggested else "none"
        self.take_config.description = f"Take the configuration of {suggested}"
        self.refresh_static()

    def _take_config(self) -> None:
        """Describe the file as the model that it looks like."""
        self.config.name.value = self.facts.published_as
        self.path.focus()  # the button goes

    def _show_failure(self, error: BaseException) -> None:
        super()._show_failure(error)
        if self.facts is not None and str(error) == str(self.facts.problem):
            self.about.value = _facts_html(replace(self.facts, problem=None))  # it is said once

    def _show_no_facts(self, error: BaseException) -> None:
        self.about.value, self.take_config.layout.display = "", "none"
        self.show_error(error)

    def _show_loaded(self, file: str, module: torch.nn.Module, seconds: float) -> None:
        self.module, self.seconds = module, seconds
        self.say(f"Loaded in {format_seconds(seconds)}; in code it is this panel's .module.")
        self.result.value = _result_html(module, seconds, _file_bytes(file, self.facts))


def _facts_html(facts: SingleFileFacts) -> str:
    stored = ", ".join(f"{format_bytes(n)} in {name}" for name, n in facts.stored_bytes.items())
    rows = [
        ("file", f"{facts.path.name}, {format_bytes(facts.file_bytes)}"),
        ("tensors", f"{facts.tensors}: {stored}"),
        ("layout", facts.layout),
    ]
    if facts.component is not None:
        part = facts.component
        rows.append(("described as", f"{part.cls}, by {facts.described_by}"))
    elif facts.published_as:
        hint = f"Diffusers would take the configuration of {facts.published_as}"
        rows.append(("looks like", hint))
    wrong = alert(f"It can't be loaded so: {facts.problem}") if facts.problem else ""
    return pairs(rows) + wrong


def _is_folder(text: str) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False  # no file can be called so


def _file_bytes(file: str, facts: SingleFileFacts | None) -> int | None:
    """Return a file's bytes; None for one of the Hub that nobody has looked at."""
    try:
        return Path(file).expanduser().stat().st_size
    except OSError:
        return None if facts is None else facts.file_bytes


def _result_html(module: torch.nn.Module, seconds: float, stored: int | None) -> str:
    report = module.quantize_report
    held = report.weight_bytes
    ratio = f" ({format_ratio(held / stored)} the file)" if stored else ""
    parameter = next(module.parameters())
    rows = [
        ("model", f"{type(module).__name__}, {report.recipe}, on {parameter.device}"),
        ("weights in memory", f"{format_bytes(held)}{ratio}"),
        ("loading took", f"{format_seconds(seconds)}, reading, converting and quantizing"),
        ("layers", f"{len(report.quantized)} quantized, {len(report.kept)} kept"),
        *(("note", text) for text in report.notes()),
    ]
    return pairs(rows)
