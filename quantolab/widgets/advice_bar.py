"""Which recipe to take: what is aimed at, one sentence with its reason, and what to do with it."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets as W

from ..errors import ArgumentError, Cancelled, QuantolabError
from ..recipes import Recipe, slug
from ..records import Comparison
from ..report.choosing import Choice, choose
from ..report.markup import alert, note
from ..units import format_bytes
from .background import Assistant
from .jobs import SaveJob
from .kinds import SAVE_MODEL
from .latest import Latest
from .model_field import LABEL, WRAP


class AdviceBar(W.VBox):
    """The sentence of `choose`, fields for a target, and buttons that save or show the recipe.

    Parameters
    ----------
    assistant : Assistant
        The process that saves.
    show_script : callable
        Takes the label of a recipe whose script is to be shown.
    chosen : callable
        Takes the label that is advised, or None, whenever that changes.
    """

    def __init__(
        self,
        assistant: Assistant,
        show_script: Callable[[str], None],
        chosen: Callable[[str | None], None],
    ) -> None:
        self._assistant, self._show_script, self._tell = assistant, show_script, chosen
        self._comparison: Comparison | None = None
        self._saving = Latest()
        self.choice: Choice | None = None
        """What is advised; None before there is anything to judge."""
        self.sentence = W.HTML()
        self.sentence.add_class("ql-advice")
        self.memory = W.Text(
            description="At most", placeholder="12GB of memory", style=LABEL,
            layout={"width": "240px"}, continuous_update=False,
        )  # fmt: skip
        self.decibels = W.Text(
            description="At least", placeholder="30 dB", style={"description_width": "60px"},
            layout={"width": "150px"}, continuous_update=False,
        )  # fmt: skip
        self.fastest = W.Checkbox(description="the fastest", indent=False, layout={"width": "auto"})
        self.save_button = _button("Save this", "Quantizes and saves the model with this recipe")
        self.save_button.add_class("ql-save-this")
        self.script_button = _button("Show the script", "The same recipe in plain Diffusers")
        self.said = W.HTML()
        target = W.HBox((self.memory, self.decibels, self.fastest), layout=WRAP)
        buttons = W.HBox((self.save_button, self.script_button), layout=WRAP)
        super().__init__((self.sentence, target, buttons, self.said))
        self.add_class("ql-choice")
        self.layout.display = "none"
        for control in (self.memory, self.decibels, self.fastest):
            control.observe(lambda _: self._judge(), "value")
        self.save_button.on_click(lambda _: self._safe(self.save))
        self.script_button.on_click(lambda _: self._safe(self.show_script))

    # --- for programs ---

    def update(self, comparison: Comparison) -> None:
        """Judge a comparison, finished or not."""
        self._comparison = comparison
        self.layout.display = None if any(trial.ok for trial in comparison.trials) else "none"
        self._judge()

    def save(self, folder: str | None = None, *, wait: bool = False) -> None:
        """Save the model with the recipe that is advised, in the background.

        Parameters
        ----------
        folder : str, optional
            Where to; by default a folder named after model and recipe. A model that was saved
            there before is replaced, anything else is not.
        wait : bool
            Whether to return only when it is saved.

        Raises
        ------
        ArgumentError
            If nothing is advised, or it is the model as it is.
        """
        recipe = self._recipe()
        if recipe.is_reference:
            raise ArgumentError("what is advised is the model unquantized: it lies there already")
        workload = self._comparison.workload
        model = workload.model.rstrip("/").rpartition("/")[2]
        asked = SaveJob(
            recipe, workload.model, workload.dtype, workload.device,
            folder or slug(f"{model} {recipe}"), workload.variant, workload.revision,
        )  # fmt: skip
        self.save_button.disabled = True
        self.said.value = note(f"Loading, quantizing and saving to {asked.folder}…")
        self._saving.start(
            lambda: self._assistant.do(SAVE_MODEL, asked),
            done=self._show_saved,
            failed=self._show_not_saved,
        )
        if wait:
            self._saving.wait()

    def show_script(self) -> None:
        """Show the plain Diffusers script of the recipe that is advised.

        Raises
        ------
        ArgumentError
            If nothing is advised.
        """
        self._recipe()
        self._show_script(self._trial().recipe.label)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being saved; whether that came true in time."""
        return self._saving.wait(timeout)

    # --- what it shows ---

    def _judge(self) -> None:
        if self._comparison is None:
            return
        try:
            self.choice = choose(self._comparison, **self._target())
            said = html.escape(self.choice.sentence)
            self.sentence.value = f"<p role='status'><b>Advice</b> {said}</p>"
        except QuantolabError as error:
            self.choice = None
            self.sentence.value = alert(error)
        advised = None if self.choice is None else self.choice.recipe
        for button in (self.save_button, self.script_button):
            button.disabled = advised is None
        if advised is not None and self._trial().recipe.is_reference:
            self.save_button.disabled = True
        self._tell(advised)

    def _target(self) -> dict[str, Any]:
        """Return what is aimed at, as `choose` takes it."""
        decibels = self.decibels.value.strip().lower().removesuffix("db").strip()
        try:
            least = float(decibels.replace(",", ".")) if decibels else None
        except ValueError:
            raise ArgumentError(
                f"at least: a number of decibels is needed, not {self.decibels.value!r}"
            ) from None
        memory = self.memory.value.strip() or None
        return {"memory": memory, "psnr_db": least, "fastest": self.fastest.value}

    def _trial(self):
        label = self.choice.recipe
        return next(trial for trial in self._comparison.trials if trial.label == label)

    def _recipe(self) -> Recipe:
        if self.choice is None or self.choice.recipe is None:
            raise ArgumentError("no recipe is advised, so there is none to save or to show")
        return self._trial().recipe

    def _show_saved(self, saved) -> None:
        self.save_button.disabled = False
        code = html.escape(f'ql.load_saved("{saved.folder}")')
        self.said.value = (
            f"<p role='status'>Saved in {html.escape(saved.folder)}, "
            f"{format_bytes(saved.disk_bytes)}; <code>{code}</code> loads it.</p>"
        )

    def _show_not_saved(self, error: BaseException) -> None:
        self.save_button.disabled = False
        self.said.value = "" if isinstance(error, Cancelled) else alert(error)

    def _safe(self, handler: Callable[[], Any]) -> None:
        try:
            handler()
        except Exception as error:
            self._show_not_saved(error)


def _button(text: str, tooltip: str) -> W.Button:
    return W.Button(description=text, tooltip=tooltip, layout={"width": "auto"})
