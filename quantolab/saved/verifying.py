"""Whether a saved model comes back as it was: reloaded in fresh processes and compared."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..arguments import public
from ..errors import ArgumentError, Cancelled, JobRaised, QuantolabError
from ..files.whole import scratch_folder
from ..models.source import read_source
from ..processes.children import Children
from ..processes.jobs import Preload
from ..telling import StepBar
from ..text_tables import ShownAsText, text_columns
from ..units import format_bytes, format_digits, format_list, format_seconds
from ..weights import HOME
from . import verifying_child
from .folder import SavedFolder, layer_words, open_saved
from .verifying_child import LOAD, Anew, LoadFound, LoadJob, describe_loaded

Told = Callable[[str, int, int], None]
"""Takes what begins, how many steps are done, and how many there are."""


@dataclass(frozen=True)
class VerifyReport(ShownAsText):
    """What reloading a saved model gave. Differences are the greatest of any single value."""

    folder: str
    model_class: str
    recipe: str
    dtype: str
    weights_difference: float
    """Between the file, the reloaded model and, where it is known, the original. Must be 0."""
    output_difference: float | None
    """Between the outputs of the reloaded model and of the reference; absent without one."""
    output_reference: str
    """What the outputs were compared with, or why they couldn't be."""
    diffusers_loads: bool
    """Whether plain ``from_pretrained`` loads the folder, runs, and holds the same weights."""
    diffusers_reason: str
    """Why not, or what to heed."""
    diffusers_output_difference: float | None
    """Between the outputs of plain Diffusers and of the reloaded model."""
    bytes_on_disk: int
    """Of all files in the folder."""
    load_seconds: float
    """To reload, files in the system's cache, libraries imported already."""
    quantize_seconds: float | None
    """To load and quantize the original anew; absent if no `model` was named."""
    output_relative_difference: float | None = None
    """Norm of the outputs' difference over the norm of the reference's outputs."""
    diffusers_relative_difference: float | None = None
    """The same of plain Diffusers' outputs, over the norm of the reloaded model's."""
    not_compared: tuple[str, ...] = ()
    """What nothing is said of here, a phrase each."""

    @property
    def ok(self) -> bool:
        """Whether everything that was compared is equal: weights, and outputs if there are any."""
        return self.weights_difference == 0 and not self.output_difference

    def __str__(self) -> str:
        rows = [
            ("saved model", f"{self.model_class}, {self.recipe}, {self.dtype}"),
            ("on disk", format_bytes(self.bytes_on_disk)),
            ("greatest difference of weights", format_digits(self.weights_difference)),
            (
                "greatest difference of outputs",
                f"{format_digits(self.output_difference)} ({self.output_reference})",
            ),
            *_relative(self.output_relative_difference),
            ("seconds to load", _times(self.load_seconds, self.quantize_seconds)),
            ("plain Diffusers loads it", "yes" if self.diffusers_loads else "no"),
        ]
        if self.diffusers_output_difference is not None:
            rows.append(
                ("  its outputs differ by", format_digits(self.diffusers_output_difference))
            )
            rows += _relative(self.diffusers_relative_difference)
        if self.diffusers_reason:
            rows.append(("  note" if self.diffusers_loads else "  why", self.diffusers_reason))
        rows += [("not compared", said) for said in self.not_compared]
        return "\n".join(text_columns(rows, "ll"))


def _relative(difference: float | None) -> list[tuple[str, str]]:
    """Return the row on a difference that isn't 0."""
    return [("  relative, by norms", format_digits(difference))] if difference else []


@public
def verify_saved(
    folder: str | os.PathLike[str],
    model: torch.nn.Module | str | os.PathLike[str] | None = None,
    *,
    component: str | None = None,
    device: str = "auto",
    cancel: threading.Event | None = None,
    variant: str | None = None,
    revision: str | None = None,
    watch: Told | None = None,
) -> VerifyReport:
    """Reload a saved model in fresh processes and report how it differs from what was saved.

    Parameters
    ----------
    folder : str or path
        A saved component, or a saved pipeline.
    model : torch.nn.Module, str or path, optional
        The original: the module that was saved, or the unquantized model (``"demo"``, a folder, a
        Hub id), which is then quantized anew by the recorded recipe. Without it, weights are
        compared with the file and outputs with plain Diffusers'.
    component : str, optional
        Which part, for a pipeline; by default the denoiser.
    device : str
        Device on which all of them run.
    cancel : threading.Event, optional
        Set it to end the processes; then `Cancelled` is raised.
    variant, revision : str, optional
        Of the unquantized model, as for `load`.
    watch : callable, optional
        Takes what begins, how many steps are done and how many there are; by default a bar, or a
        line a step where there is no terminal.

    Returns
    -------
    VerifyReport
        Outputs are those of one forward pass on made-up inputs. Prints as a small table.

    Raises
    ------
    ModelNotFoundError, BrokenModelError
        If the folder, or the model, can't be read: the error that `load_saved` gives.

    Examples
    --------
    >>> verify_saved(save(load("demo", "int8"), "demo-int8"), "demo").ok
    True
    """
    path = _component_folder(Path(folder).expanduser(), component)
    saved = open_saved(path)
    with (
        closing(StepBar()) as bar,
        scratch_folder("verify") as place,
        Children(_preload(saved), environment={"PYTHONWARNINGS": "ignore"}) as children,
    ):
        total = 1 + _diffusers_is_asked(saved)[0] + (model is not None)
        steps = _Steps(watch or bar, total)
        check = _Check(children, path.resolve(), str(device), place, cancel, steps)
        ours = check.load("quantolab")
        plain, reason = _plain(saved, check)
        named = {"variant": variant, "revision": revision}
        original = _original(saved, model, component, folder, check, named)
        outputs, reference = _outputs(ours, original, plain, model)
        of_plain = _difference(plain, ours)
        return VerifyReport(
            folder=str(path),
            model_class=saved.component.cls,
            recipe=ours.recipe,
            dtype=ours.dtype,
            weights_difference=max(
                ours.difference, original.difference if original is not None else 0.0
            ),
            output_difference=outputs.greatest,
            output_reference=reference,
            diffusers_loads=plain is not None,
            diffusers_reason=reason,
            diffusers_output_difference=of_plain.greatest,
            bytes_on_disk=sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
            load_seconds=ours.seconds or 0.0,
            quantize_seconds=None if original is None else original.seconds,
            output_relative_difference=outputs.relative,
            diffusers_relative_difference=of_plain.relative,
            not_compared=_not_compared(Path(folder).expanduser(), path, ours, original, plain),
        )


class _Steps:
    """Tells which step begins."""

    def __init__(self, watch: Told, total: int) -> None:
        self._watch, self._total, self._done = watch, total, 0

    def begin(self, what: str) -> None:
        self._watch(what, self._done, self._total)
        self._done += 1


_BEGINS = {
    "quantolab": "reloading the folder in a fresh process",
    "diffusers": "loading it with plain Diffusers",
    "anew": "loading and quantizing the original anew",
    "module": "running the original",
}


@dataclass(frozen=True)
class _Check:
    """Loads the folder in fresh processes."""

    children: Children
    folder: Path
    device: str
    place: Path
    """For the outputs."""
    cancel: threading.Event | None
    steps: _Steps

    def load(self, way: str, anew: Anew | None = None) -> LoadFound:
        """Load one way and return what was found.

        Raises
        ------
        QuantolabError
            What loading raised, or that its process ended.
        """
        self.steps.begin(_BEGINS[way])
        asked = LoadJob(self.folder, way, self.device, anew)
        return self.children.run(LOAD, asked, folder=self.place / way, cancel=self.cancel)


def _preload(saved: SavedFolder) -> Preload:
    """Return what is imported before anything is timed."""
    part = saved.component
    # What another backend's words need is imported in the children that use them, by themselves.
    backends = (f"quantolab.backends.{HOME}.layers",)
    return Preload(((part.library, part.cls),), (verifying_child.__name__,), backends)


def _diffusers_is_asked(saved: SavedFolder) -> tuple[bool, str]:
    """Return whether plain Diffusers may load a folder, and why not or what to heed."""
    if saved.record is not None:
        return saved.record.plain_diffusers.loads, saved.record.plain_diffusers.reason
    if layer_words(saved) and "quantization_config" not in saved.config:
        return False, "config.json has no quantization_config: from_quanto adds one"
    return True, ""


def _plain(saved: SavedFolder, check: _Check) -> tuple[LoadFound | None, str]:
    """Return what plain Diffusers gave, and why it gave nothing or what to heed."""
    known, reason = _diffusers_is_asked(saved)
    if not known:
        return None, reason
    try:
        found = check.load("diffusers")
    except Cancelled:
        raise
    except JobRaised as error:
        return None, f"{error}{'; ' + reason if reason else ''}"
    except QuantolabError as error:
        text = f"{error}, while it loaded and ran the model with plain Diffusers"
        return None, f"{text}{'; ' + reason if reason else ''}"
    if found.difference > 0:
        text = f"its weights differ by {format_digits(found.difference)}"
        return None, f"{text}{'; ' + reason if reason else ''}"
    return found, reason


def _original(
    saved: SavedFolder,
    model: Any,
    component: str | None,
    folder: Any,
    check: _Check,
    named: dict[str, str | None],
) -> LoadFound | None:
    """Return what the original gives: the module itself, or the model quantized anew."""
    if model is None:
        return None
    if isinstance(model, torch.nn.Module):
        check.steps.begin(_BEGINS["module"])
        return describe_loaded(model, saved, check.place)
    if saved.record is None:
        raise ArgumentError(
            f"{str(saved.folder)!r} carries no recipe (quantolab didn't write it), so its model "
            "can't be quantized anew; give the module itself, or nothing"
        )
    inside = saved.folder.name if saved.folder.name != Path(folder).name else None
    component = component or inside
    anew = Anew(os.fspath(model), component, saved.record.recipe, saved.record.dtype, **named)
    return check.load("anew", anew)


def _component_folder(folder: Path, component: str | None) -> Path:
    if (folder / "model_index.json").is_file():
        return read_source(str(folder), folder).component(component).folder
    return folder


@dataclass(frozen=True)
class _Apart:
    """How far outputs are apart; absent where there are none."""

    greatest: float | None = None
    relative: float | None = None


def _outputs(
    ours: LoadFound, original: LoadFound | None, plain: LoadFound | None, model: object
) -> tuple[_Apart, str]:
    if ours.output is None:
        return _Apart(), f"no inputs are known for its class: {ours.cls}"
    if original is not None and original.output is not None:
        what = "the original" if isinstance(model, torch.nn.Module) else "quantized anew"
        return _difference(ours, original), f"from {what}"
    if plain is not None and plain.output is not None:
        return _difference(ours, plain), "from plain Diffusers"
    return _Apart(), "no original was given to compare with"


def _not_compared(
    asked: Path,
    path: Path,
    ours: LoadFound,
    original: LoadFound | None,
    plain: LoadFound | None,
) -> tuple[str, ...]:
    """Return what nothing was found of."""
    said = []
    if original is None:
        said.append("the original: name the unquantized model, or give the module that was saved")
    if ours.output is None:
        said.append(f"outputs: no inputs are known for a {ours.cls}")
    if plain is None:
        said.append("what plain Diffusers makes of it: it doesn't load this folder")
    others = [p.name for p in read_source(str(asked), asked).components] if asked != path else []
    others = [name for name in others if name != path.name]
    if others:
        said.append(f"other parts, each by component=: {format_list(others)}")
    return tuple(said)


def _difference(one: LoadFound | None, reference: LoadFound) -> _Apart:
    """Return how far the outputs of one are from the reference's."""
    if one is None or one.output is None or reference.output is None:
        return _Apart()
    first, second = (torch.load(f.output, weights_only=True) for f in (one, reference))
    if first.shape != second.shape:
        return _Apart(math.inf, math.inf)
    if torch.equal(first, second):
        return _Apart(0.0, 0.0)
    first, second = first.double(), second.double()
    apart = (first - second).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    relative = (apart.norm() / second.norm()).nan_to_num(nan=math.inf, posinf=math.inf)
    return _Apart(apart.max().item(), relative.item())


def _times(load_seconds: float, quantize_seconds: float | None) -> str:
    text = format_seconds(load_seconds)
    if quantize_seconds is not None:
        text += f" (quantizing anew: {format_seconds(quantize_seconds)})"
    return text
