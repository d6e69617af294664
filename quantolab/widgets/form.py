"""The explorer's form: controls whose state is a `Choice`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as W

from ..errors import ArgumentError
from ..models.known import known_models
from ..models.source import DEMO, Source, default_size, size_step
from ..recipes import Recipe, default_recipes
from ..run import REPEATS, RUNS
from ..run.asked import check_request
from ..weights import REFERENCE, WORDS
from .backend_words import BackendWords
from .choosing import Choice, read_lines, read_number, read_numbers, read_size
from .model_field import LABEL, WRAP, ModelField, labelled_row
from .prompt_hints import PromptHints
from .recent import recent_models
from .recipe_field import RecipeField
from .words_field import WordsField

_FIELD = "204px"  # three of them beside the estimate


class Form(W.VBox):
    """Everything that `compare` can be asked for.

    Parameters
    ----------
    model : str or path, optional
        As `compare` takes it.
    on_change : callable
        Called without arguments when what is chosen changes.
    show_error : callable
        Takes the reason why a model can't be had, or None when that is over.
    """

    def __init__(
        self,
        model=None,
        *,
        on_change: Callable[[], None],
        show_error: Callable[[BaseException | None], None],
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        self._on_change = on_change
        self._quiet = 0
        self._defaults: dict[W.Widget, Any] = {}
        self._extras: dict[str, Recipe] = {}
        self._listed: tuple = ()  # whose layers the skip picker offers
        self.model = ModelField(
            model, show_error=show_error, components=False, variant=variant, revision=revision
        )
        known = (model.hub_ids[0] for model in known_models())  # to plan with, before any download
        names = (*self.model.name.options, *recent_models(), *known)
        self.model.name.options = tuple(dict.fromkeys(names))
        self.parts: dict[str, W.Checkbox] = {}
        self.others = BackendWords()
        self.weights = {word: _box(word, True) for word in WORDS} | self.others.boxes
        self.compile = _box("also compiled (torch.compile)", False)
        self.both = _box("compare each with and without keeping them", False)
        self._make_fields()
        super().__init__()
        self.add_class("ql-form")
        self._parts_row = W.HBox()
        self._fill()
        self._listen()
        self._take_source()

    def _make_fields(self) -> None:
        self.more = W.TagsInput(allow_duplicates=False)
        self.recipe = RecipeField(weights=False)  # compute dtype, device and the skip picker
        self.recipe.dtype.layout.width = self.recipe.device.layout.width = _FIELD
        self.skips = W.ToggleButton(layout={"width": "auto"})
        self.picker = W.Box((self.recipe.picker,), layout={"display": "none"})
        self.picker.add_class("ql-picker")
        self.words = WordsField()
        self.mixed = W.ToggleButton(
            description="Words by component and layer", layout={"width": "auto"}
        )
        self.add_mixed = W.Button(
            description="Compare this recipe too", disabled=True,
            layout={"width": "auto", "align_self": "flex-start"},
            tooltip="Adds it to what is compared, beside the dtypes that are marked",
        )  # fmt: skip
        self.mixed_box = W.VBox((self.words, self.add_mixed), layout={"display": "none"})
        self.mixed_box.add_class("ql-picker")
        self.prompts = W.Textarea(
            description="Prompts",
            placeholder="one a line",
            rows=4,
            continuous_update=False,
            style=LABEL,
            layout={"width": "min(760px, calc(100% - 4px))"},
        )
        self.hints = PromptHints(self.prompts)
        self.seeds = _text("Seeds", "0", "0, 1, 2")
        self.steps = _text("Steps", "", "model's own")
        self.guidance = _text("Guidance", "", "model's own")
        self.size = _text("Size", "", "512x512")
        self.frames = _text("Frames", "", "pictures")
        self.frames.tooltip = "Frames of each video, for models that make videos"
        self.repeats = _text("Rounds", str(REPEATS), str(REPEATS))
        self.repeats.tooltip = (
            "Rounds of one picture a recipe; from 6 on there are intervals and verdicts"
        )
        self.workers = _text("Workers", "", "one place")
        self.workers.tooltip = (
            "How many make the pictures at once on this machine, or the address of a dask "
            "scheduler (tls://host:port)"
        )
        self.variant = self.model.variant_field
        self.variant.layout.width = _FIELD
        self.out = _folder("Folder", f"a new one under {RUNS}")
        self.reference = _folder("Reference", "unquantized pictures of this run")
        self.reference.tooltip = (
            "Folder of another run of the same prompts, seeds, steps, size and guidance, whose "
            "unquantized pictures are to judge these"
        )

        self.lora = _folder("LoRA", "style.safetensors=0.8")
        self.lora.tooltip = (
            "A LoRA's file that every recipe's pipeline carries, with the scale of what it adds"
        )

    def _fill(self) -> None:
        self._more_row = labelled_row("And", (self.more,))
        self.children = (
            self.model,
            self._parts_row,
            labelled_row("Weights", (*(self.weights[word] for word in WORDS), self.compile)),
            self.others,
            self._more_row,
            labelled_row("", (self.skips, self.both, self.mixed, self.others.button)),
            self.picker,
            self.mixed_box,
            self.prompts,
            self.hints,
            W.HBox((
                self.seeds, self.steps, self.guidance, self.size, self.frames, self.repeats,
                self.recipe.dtype, self.recipe.device, self.variant, self.workers,
            ), layout=WRAP),
            W.HBox((self.out, self.reference, self.lora), layout=WRAP),
        )  # fmt: skip

    def _listen(self) -> None:
        controls = [
            self.more, self.prompts, self.seeds, self.steps, self.guidance, self.size, self.frames,
            self.repeats, self.workers, self.out, self.reference, self.lora, self.compile,
            self.both,
            *self.weights.values(),
        ]  # fmt: skip
        for control in controls:
            control.observe(lambda _: self._changed(), "value")
        self.recipe.observe(lambda _: self._changed(), "state")
        self.skips.observe(lambda _: self._open_picker(), "value")
        self.mixed.observe(lambda _: self._open_words(), "value")
        self.words.observe(lambda _: self._words_changed(), "value")
        self.words.on_click(self.add_mixed, lambda: self.add(self.words.recipe))
        self.model.observe(lambda _: self._take_source(), "source")

    # --- what is chosen ---

    @property
    def source(self) -> Source | None:
        """The model that was found; None while it isn't known, or if there is none."""
        return self.model.source

    @property
    def components(self) -> tuple[str, ...]:
        """The components of recipes: empty where that is the denoiser alone.

        Raises
        ------
        ArgumentError
            If none is marked.
        """
        chosen = tuple(name for name, box in self.parts.items() if box.value)
        if self.source is None or chosen == self.source.denoisers:
            return ()
        if not chosen:
            raise ArgumentError(
                f"no part of the model is marked; at least one of {', '.join(self.parts)} is needed"
            )
        return chosen

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The recipes that the marks and the skip list stand for, and those given by code."""
        words = [word for word, box in self.weights.items() if box.value]
        extras = [self._extras[label] for label in self.more.value]
        # The components matter only where something is quantized.
        components = self.components if set(words) - {REFERENCE} else ()
        made = _recipes(words, self.recipe.skip, components, self.both.value)
        return tuple(dict.fromkeys((*made, *extras)))

    @property
    def choice(self) -> Choice:
        """What the form says, checked only as far as that is needed to say it.

        Raises
        ------
        ArgumentError
            If no component is marked, or a word is no recipe.
        """
        _, dtype, device, *_ = self.recipe.state
        return Choice(
            model=self.model.model,
            recipes=self.recipes,
            prompts=self._given(self.prompts, read_lines),
            seeds=read_numbers(self.seeds.value),
            steps=self._given(self.steps, lambda text: read_number(text, int)),
            guidance=read_number(self.guidance.value, float),
            size=self._given(self.size, read_size),
            dtype=dtype,
            device=device,
            repeats=read_number(self.repeats.value, int),
            compile=self.compile.value,
            out=self.out.value.strip() or None,
            reference=self.reference.value.strip() or None,
            variant=self.model.variant,
            revision=self.model.revision,
            workers=read_number(self.workers.value, int),
            lora=self.lora.value.strip() or None,
            frames=read_number(self.frames.value, int),
        )

    def show(self, choice: Choice) -> None:
        """Set every control, the model first; then tell of one change."""
        with self._at_once():
            named = (choice.model, choice.variant, choice.revision)
            if named != (self.model.model, self.model.variant, self.model.revision):
                self.model.variant, self.model.revision = choice.variant, choice.revision
                same = choice.model == self.model.name.value
                self.model.name.value, self.variant.value = choice.model, choice.variant or ""
                if same:
                    self.model.look()
            self._show_recipes(choice.recipes)
            for control, value in (
                (self.prompts, choice.prompts and "\n".join(choice.prompts)),
                (self.steps, choice.steps),
                (self.size, choice.size and _size_text(choice.size)),
            ):
                default = self._defaults.get(control, "")
                control.value = default if value is None else str(value)
            self.seeds.value = ", ".join(map(str, choice.seeds))
            self.guidance.value = "" if choice.guidance is None else f"{choice.guidance}"
            self.repeats.value = str(choice.repeats)
            _choose(self.recipe.dtype, choice.dtype)
            _choose(self.recipe.device, choice.device)
            self.compile.value = bool(choice.compile)
            self.workers.value = "" if choice.workers is None else str(choice.workers)
            self.out.value = choice.out or ""
            self.reference.value = choice.reference or ""
            self.lora.value = choice.lora or ""
            self.frames.value = "" if choice.frames is None else str(choice.frames)

    def add(self, recipe: Recipe | None) -> None:
        """Compare one more recipe, whatever words it has for components and layers."""
        if recipe is None:
            raise ArgumentError("the recipe says nothing: give a component or some layers a word")
        if recipe in self.recipes:
            raise ArgumentError(f"the recipe '{recipe}' is among those that are compared")
        with self._at_once():
            self._extras[recipe.label] = recipe
            self.more.allowed_tags = list(self._extras)
            self.more.value = [*self.more.value, recipe.label]

    def _given(self, control: W.Widget, read: Callable[[str], Any]) -> Any:
        """Return what is typed; None if that is what the model does by itself."""
        return None if control.value == self._defaults.get(control) else read(control.value)

    # --- the model ---

    def _take_source(self) -> None:
        """Offer the model's parts, and what it does by default where nothing else was typed."""
        source = self.source
        if source is None:
            self._changed()
            return
        with self._at_once():
            self._offer_parts(source)
            for control, value in self._defaults_of(source).items():
                if control.value in ("", self._defaults.get(control)):
                    control.value = value
                self._defaults[control] = value

    def _offer_parts(self, source: Source) -> None:
        if tuple(self.parts) == tuple(part.name for part in source.components):
            return
        self.parts = {p.name: _box(p.name, p.name in source.denoisers) for p in source.components}
        for box in self.parts.values():
            box.observe(lambda _: self._changed(), "value")
        self._parts_row.children = labelled_row("Quantize", tuple(self.parts.values())).children

    def _defaults_of(self, source: Source) -> dict[W.Widget, str]:
        size = default_size(source)
        stand_in = (size_step(source),) * 2  # where its files don't say one
        try:
            workload = check_request(source, size=size or stand_in).workload
        except ArgumentError:
            return {}  # one component, say: the check of the form has the words for it
        return {
            self.prompts: "\n".join(workload.prompts),
            self.steps: str(workload.steps),
            self.size: _size_text(size) if size else "",
        }

    # --- recipes given by code ---

    def _show_recipes(self, recipes: tuple[Recipe, ...]) -> None:
        """Mark what stands for these recipes; those that marks can't express are listed."""
        self._extras, self.more.value = {}, []
        quantized = [recipe for recipe in recipes if not recipe.is_reference]
        skip = max((recipe.skip for recipe in quantized), key=len, default=())
        components = quantized[0].components if quantized else ()
        known = set(components) <= set(self.parts)
        self.recipe.picker.value = skip
        self.both.value = bool(skip) and any(not recipe.skip for recipe in quantized)
        for name, box in self.parts.items():
            denoiser = self.source is not None and name in self.source.denoisers
            box.value = name in components if components and known else denoiser
        for word, box in self.weights.items():
            box.value = any(recipe.weights == word for recipe in recipes)
        if self.recipes != recipes:
            for box in self.weights.values():
                box.value = False
            self.recipe.picker.value = ()
            self._extras = {recipe.label: recipe for recipe in recipes}
            self.more.allowed_tags = list(self._extras)
            self.more.value = list(self._extras)

    # --- telling ---

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Tell of many changes once, at the end."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1
        self._changed()

    def _open_picker(self) -> None:
        self.picker.layout.display = None if self.skips.value else "none"
        # Its layers are looked up once it is open.
        self.recipe.more.selected_index = 0 if self.skips.value else None

    def _open_words(self) -> None:
        self.mixed_box.layout.display = None if self.mixed.value else "none"
        if self.mixed.value:
            self.words.unfold()

    def _words_changed(self) -> None:
        self.add_mixed.disabled = not self.words.value

    def _changed(self) -> None:
        if self._quiet:
            return
        self._more_row.layout.display = None if self._extras else "none"
        self.both.layout.display = None if self.recipe.skip else "none"
        self.hints.update(is_demo=self.source is not None and self.source.model == DEMO)
        self.skips.description = self.recipe.more.titles[0]
        names = tuple(name for name, box in self.parts.items() if box.value)
        if self.source is not None and names and self._listed != (self.source, names):
            self._listed = (self.source, names)
            self.recipe.set_model(self.model.pinned, names)
        if self.source is not None:
            every = tuple(part.name for part in self.source.components)
            dtype = self.recipe.dtype.value
            self.words.set_model(self.model.pinned, every, self.source.denoisers, dtype)
        self._on_change()


def _recipes(
    words: Iterable[str], skip: tuple[str, ...], components: tuple[str, ...], both: bool
) -> list[Recipe]:
    """Recipes of marks; with `both`, each before its twin that keeps the listed layers."""
    lists = ((), skip) if both else (skip,)
    return [
        recipe for word in words for s in lists for recipe in default_recipes([word], s, components)
    ]


def _size_text(size: Any) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _box(text: str, value: bool) -> W.Checkbox:
    return W.Checkbox(
        value=value,
        description=text,
        indent=False,
        layout={"width": "auto", "margin": "2px 12px 2px 2px"},
    )


def _text(label: str, value: str, placeholder: str) -> W.Text:
    return W.Text(
        value=value,
        description=label,
        placeholder=placeholder,
        continuous_update=False,
        style=LABEL,
        layout={"width": _FIELD},
    )


def _folder(label: str, placeholder: str) -> W.Text:
    return W.Text(
        description=label,
        placeholder=placeholder,
        continuous_update=False,
        style=LABEL,
        layout={"width": "min(396px, 100%)"},
    )


def _choose(dropdown: W.Dropdown, value: str) -> None:
    """Choose a value, one that isn't offered too ("cuda:1"); the check says if it is wrong."""
    if value not in dropdown.options:
        dropdown.options = (*dropdown.options, value)
    dropdown.value = value
