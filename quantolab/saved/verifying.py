"""Whether a saved model comes back as it was: reloaded in fresh processes and compared."""

from __future__ import annotations

import math
import os
import threading
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
from ..text_tables import text_columns
from ..units import format_bytes, format_digits, format_seconds
from ..weights import HOME
from . import verifying_child
from .folder import SavedFolder, layer_words, open_saved
from .verifying_child import LOAD, Anew, LoadFound, LoadJob, describe_loaded


@dataclass(frozen=True)
class VerifyReport:
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
            ("seconds to load", _times(self.load_seconds, self.quantize_seconds)),
            ("plain Diffusers loads it", "yes" if self.diffusers_loads else "no"),
        ]
        if self.diffusers_output_difference is not None:
            rows.append(
                ("  its outputs differ by", format_digits(self.diffusers_output_difference))
            )
        if self.diffusers_reason:
            rows.append(("  note" if self.diffusers_loads else "  why", self.diffusers_reason))
        return "\n".join(text_columns(rows, "ll"))


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

    Returns
    -------
    VerifyReport
        Prints as a small table.

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
        scratch_folder("verify") as place,
        Children(_preload(saved), environment={"PYTHONWARNINGS": "ignore"}) as children,
    ):
        check = _Check(children, path.resolve(), str(device), place, cancel)
        ours = check.load("quantolab")
        plain, reason = _plain(saved, check)
        named = {"variant": variant, "revision": revision}
        original = _original(saved, model, component, folder, check, named)
        difference, reference = _outputs(ours, original, plain, model)
        return VerifyReport(
            folder=str(path),
            model_class=saved.component.cls,
            recipe=ours.recipe,
            dtype=ours.dtype,
            weights_difference=max(
                ours.difference, original.difference if original is not None else 0.0
            ),
            output_difference=difference,
            output_reference=reference,
            diffusers_loads=plain is not None,
            diffusers_reason=reason,
            diffusers_output_difference=None if plain is None else _difference(plain, ours),
            bytes_on_disk=sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
            load_seconds=ours.seconds or 0.0,
            quantize_seconds=None if original is None else original.seconds,
        )


@dataclass(frozen=True)
class _Check:
    """Loads the folder in fresh processes."""

    children: Children
    folder: Path
    device: str
    place: Path
    """For the outputs."""
    cancel: threading.Event | None

    def load(self, way: str, anew: Anew | None = None) -> LoadFound:
        """Load one way and return what was found.

        Raises
        ------
        QuantolabError
            What loading raised, or that its process ended.
        """
        asked = LoadJob(self.folder, way, self.device, anew)
        return self.children.run(LOAD, asked, folder=self.place / way, cancel=self.cancel)


def _preload(saved: SavedFolder) -> Preload:
    """Return what is imported before anything is timed."""
    part = saved.component
    # What another backend's words need is imported in the children that use them, by themselves.
    backends = (f"quantolab.backends.{HOME}.layers",)
    return Preload(((part.library, part.cls),), (verifying_child.__name__,), backends)


def _plain(saved: SavedFolder, check: _Check) -> tuple[LoadFound | None, str]:
    """Return what plain Diffusers gave, and why it gave nothing or what to heed."""
    known, reason = True, ""
    if saved.record is not None:
        known, reason = saved.record.plain_diffusers.loads, saved.record.plain_diffusers.reason
    elif layer_words(saved) and "quantization_config" not in saved.config:
        known, reason = False, "config.json has no quantization_config: from_quanto adds one"
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


def _outputs(
    ours: LoadFound, original: LoadFound | None, plain: LoadFound | None, model: object
) -> tuple[float | None, str]:
    if ours.output is None:
        return None, f"no inputs are known for its class: {ours.cls}"
    if original is not None and original.output is not None:
        what = "the original" if isinstance(model, torch.nn.Module) else "quantized anew"
        return _difference(original, ours), f"from {what}"
    if plain is not None and plain.output is not None:
        return _difference(plain, ours), "from plain Diffusers"
    return None, "no original was given to compare with"


def _difference(one: LoadFound, other: LoadFound) -> float | None:
    if one.output is None or other.output is None:
        return None
    first, second = (torch.load(f.output, weights_only=True) for f in (one, other))
    if first.shape != second.shape:
        return math.inf
    if torch.equal(first, second):
        return 0.0
    return (first.double() - second.double()).abs().nan_to_num(nan=math.inf).max().item()


def _times(load_seconds: float, quantize_seconds: float | None) -> str:
    text = format_seconds(load_seconds)
    if quantize_seconds is not None:
        text += f" (quantizing anew: {format_seconds(quantize_seconds)})"
    return text
