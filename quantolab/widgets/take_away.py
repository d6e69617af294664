"""What the user takes along: files of a run, a plain Diffusers script, the call that repeats it."""

from __future__ import annotations

import base64
import html
import mimetypes
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as W

from ..errors import ArgumentError, Cancelled, one_of
from ..files.whole import usable_folder, workplace, write_whole
from ..records import Comparison
from ..report.files import report_makers
from ..report.markup import alert, note
from ..units import format_bytes
from ..weights import REFERENCE
from .background import Assistant
from .choosing import Choice
from .code_box import CodeBox
from .jobs import ScriptJob
from .kinds import WRITE_SCRIPT
from .latest import Latest
from .model_field import LABEL, WRAP

if TYPE_CHECKING:
    from .panel import Panel

WHOLE = "whole run (zip)"
FILES = {
    "CSV": "results.csv",
    "Parquet": "results.parquet",
    "Markdown": "results.md",
    "grid PNG": "grid.png",
    "plot PNG": "tradeoff.png",
}
"""Names of exports, and the files that they write."""
EXPORTS = (*FILES, WHOLE)

_EMBEDDED = 8_000_000
"""Bytes up to which a file is handed to the browser inside the page."""


def export(kind: str, comparison: Comparison, folder: str | Path | None = None) -> Path:
    """Write one of the exports and return its file, which appears whole or not at all.

    Parameters
    ----------
    kind : str
        One of `EXPORTS`.
    comparison : Comparison
        What to write, finished or not.
    folder : str or pathlib.Path, optional
        Where to; by default the folder of the run. The whole run becomes a zip file beside its
        folder.

    Raises
    ------
    ArgumentError
        If the kind is another word, or there is no folder to write to.
    OutputError
        If it can't be written.
    """
    one_of("export", kind, EXPORTS)
    if folder is None and comparison.folder is None:
        raise ArgumentError("this comparison lies in no folder; name one to write to")
    if kind == WHOLE:
        return zip_run(comparison, folder)
    path = usable_folder(folder or comparison.folder) / FILES[kind]
    write_whole(path, report_makers(comparison)[FILES[kind]]())
    return path


def zip_run(comparison: Comparison, folder: str | Path | None = None) -> Path:
    """Write the folder of a run as one zip file and return it.

    Raises
    ------
    ArgumentError
        If the comparison lies in no folder.
    OutputError
        If it can't be written.
    """
    if comparison.folder is None:
        raise ArgumentError("this comparison lies in no folder that could be packed")
    run = Path(comparison.folder).resolve()
    target = usable_folder(folder or run.parent) / f"{run.name}.zip"
    with workplace(target.parent) as made:
        # Pictures and Parquet are compressed already.
        with zipfile.ZipFile(made / target.name, "w") as archive:
            for path in sorted(run.rglob("*")):
                inside = path.relative_to(run)
                hidden = inside.parts[0].startswith(".")  # of a run that is under way
                own = path.resolve() == path  # no link, nor behind one: its target isn't the run's
                if own and path.is_file() and path != target and not hidden:
                    archive.write(path, Path(run.name) / inside)
        (made / target.name).replace(target)
    return target


def script_job(comparison: Comparison, label: str) -> ScriptJob:
    """Return the job that writes the script of a trial's recipe.

    Raises
    ------
    ArgumentError
        If there is no such trial.
    """
    trials = {trial.label: trial for trial in comparison.trials}
    trial = trials[one_of("recipe", label, trials)]
    workload = comparison.workload
    return ScriptJob(
        recipe=trial.recipe,
        model=workload.model,
        dtype=workload.dtype,
        # A script goes to other machines: on a GPU if there is one.
        device="auto" if workload.device in ("cpu", "cuda") else workload.device,
        prompt=workload.prompts[0],
        steps=workload.steps,
        seed=workload.seeds[0],
        size=workload.size,
        guidance=workload.guidance,
        lora=None if workload.lora is None else workload.lora.text,
        frames=workload.frames,
    )


class TakeAway(W.VBox):
    """Buttons that write files, and code to copy.

    Parameters
    ----------
    panel : Panel
        Whose handlers' errors are shown.
    assistant : Assistant
        The process that resolves layers for the script.
    """

    def __init__(self, panel: Panel, assistant: Assistant) -> None:
        self._assistant = assistant
        self._comparison: Comparison | None = None
        self._offered: str | None = None
        self._writing, self._scripting = Latest(), Latest()
        self.folder = W.Text(
            description="Write to",
            placeholder="the run's own folder",
            style=LABEL,
            layout={"width": "min(520px, 100%)"},
        )
        self.buttons = {kind: _button(kind, _said(kind)) for kind in EXPORTS}
        self.written = W.HTML()
        self.recipe = W.Dropdown(
            description="Recipe", style=LABEL, layout={"width": "min(420px, 100%)"}
        )
        self.write_script = _button("Diffusers script", "Resolves the layers it needs to name")
        self.script = CodeBox("The same recipe in plain Diffusers")
        self.script_said = W.HTML()
        self.call = CodeBox("The call that repeats this run")
        exports = W.VBox((
            self.folder, W.HBox(tuple(self.buttons.values()), layout=WRAP), self.written,
        ))  # fmt: skip
        exports.add_class("ql-export")
        super().__init__((
            exports,
            self.call,
            W.HBox((self.recipe, self.write_script), layout={**WRAP, "margin": "12px 0 0"}),
            self.script_said, self.script,
        ))  # fmt: skip
        for kind, button in self.buttons.items():
            panel.on_click(button, lambda kind=kind: self.export(kind))
        panel.on_click(self.write_script, self.make_script)
        panel.on_change((self.recipe,), self._forget_script)

    def update(self, comparison: Comparison, choice: Choice) -> None:
        """Offer what there is of a comparison; `choice` is what it was asked by."""
        self._comparison = comparison
        for button in (*self.buttons.values(), self.write_script):
            button.disabled = not comparison.trials
        self._offer_recipes(tuple(t.label for t in comparison.trials if not t.compiled))
        self.call.code = choice.code()
        self.written.value = ""

    def export(self, kind: str, *, wait: bool = False) -> None:
        """Write a file in the background and offer it for download."""
        comparison, folder = self._comparison, self.folder.value.strip() or None
        if comparison is None:
            raise ArgumentError("there is nothing to write yet")
        self.written.value = note(f"Writing {kind}…")
        self._writing.start(
            lambda: written_html(export(kind, comparison, folder)),
            done=lambda text: setattr(self.written, "value", text),
            failed=lambda error: setattr(self.written, "value", alert(error)),
        )
        if wait:
            self._writing.wait()

    def make_script(self, *, wait: bool = False) -> None:
        """Write the plain Diffusers script of the chosen recipe, in the background."""
        if self._comparison is None or self.recipe.value is None:
            raise ArgumentError("there is no recipe to write a script of")
        asked = script_job(self._comparison, self.recipe.value)
        self.script.code = ""
        self.script_said.value = note("Resolving the layers…")
        self._scripting.start(
            lambda: self._assistant.do(WRITE_SCRIPT, asked).code,
            done=self._show_script,
            failed=self._show_no_script,
        )
        if wait:
            self._scripting.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being written; whether that came true in time."""
        return self._writing.wait(timeout) and self._scripting.wait(timeout)

    def _offer_recipes(self, labels: tuple[str, ...]) -> None:
        """Offer these; what the user chose stays, else it is the first that is quantized."""
        if labels == tuple(self.recipe.options):
            return
        chosen, offered = self.recipe.value, self._offered
        self.recipe.options = labels  # which chooses the first
        self._offered = next((label for label in labels if label != REFERENCE), self.recipe.value)
        kept = chosen in labels and chosen != offered
        self.recipe.value = chosen if kept else self._offered

    def _show_script(self, code: str) -> None:
        self.script_said.value, self.script.code = "", code

    def _show_no_script(self, error: BaseException) -> None:
        self.script_said.value = "" if isinstance(error, Cancelled) else alert(error)

    def _forget_script(self) -> None:
        self.script.code = self.script_said.value = ""


def written_html(path: Path) -> str:
    """Return where a file lies, with a link that downloads it if it is small."""
    size = path.stat().st_size
    said = f"<span role='status'>Written: <code>{html.escape(str(path))}</code>"
    said += f", {format_bytes(size)}.</span>"
    if size > _EMBEDDED:
        return f"<p>{said}</p>"
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.name)
    return (
        f"<p>{said} <a class='ql-download' download='{name}' href='data:{kind};base64,{data}'>"
        f"Download {name}</a></p>"
    )


def _said(kind: str) -> str:
    return "Packs the run's folder" if kind == WHOLE else f"Writes {FILES[kind]}"


def _button(text: str, tooltip: str) -> W.Button:
    return W.Button(
        description=text[0].upper() + text[1:], tooltip=tooltip, layout={"width": "auto"}
    )
