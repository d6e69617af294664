"""Whether a saved model comes back as it was: reloaded in fresh processes and compared.

Run as a program, this module is one of those processes: it loads, compares and writes what it
found into a file.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ArgumentError, Cancelled, QuantolabError, UnsupportedError
from ...models.sample_inputs import first_output, sample_inputs
from ...models.source import read_source
from ...units import ABSENT, format_bytes, format_seconds
from .files import raw_bytes
from .generic import pieces
from .reading import weight_files
from .saved_folder import SavedFolder, layer_words, open_saved
from .tensors import inner_tensors

_OURS, _PLAIN, _ANEW = "quantolab", "diffusers", "anew"
_POLL_SECONDS = 0.1  # how soon cancel is heard


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
            ("greatest difference of weights", _number(self.weights_difference)),
            (
                "greatest difference of outputs",
                f"{_number(self.output_difference)} ({self.output_reference})",
            ),
            ("seconds to load", _times(self.load_seconds, self.quantize_seconds)),
            ("plain Diffusers loads it", "yes" if self.diffusers_loads else "no"),
        ]
        if self.diffusers_output_difference is not None:
            rows.append(("  its outputs differ by", _number(self.diffusers_output_difference)))
        if self.diffusers_reason:
            rows.append(("  note" if self.diffusers_loads else "  why", self.diffusers_reason))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def verify_saved(
    folder: str | os.PathLike,
    model: torch.nn.Module | str | os.PathLike | None = None,
    *,
    component: str | None = None,
    device: str = "auto",
    cancel: threading.Event | None = None,
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
    words = layer_words(saved)
    with tempfile.TemporaryDirectory(prefix="quantolab-verify-") as place:
        task = {"folder": str(path.resolve()), "device": str(device), "place": place}
        ours = _in_process({**task, "way": _OURS}, cancel)
        if "error" in ours:
            raise _as_error(ours)
        loads, reason, plain = _plain(saved, words, task, cancel)
        original: dict[str, Any] = {}
        if isinstance(model, torch.nn.Module):
            original = _facts(model, saved, "original", place)
        elif model is not None:
            recipe = saved.record.values["recipe"] if saved.record else None
            if recipe is None:
                raise ArgumentError(
                    f"{str(path)!r} carries no recipe (quantolab didn't write it), so its model "
                    "can't be quantized anew; give the module itself, or nothing"
                )
            part = component or (path.name if path.name != Path(folder).name else None)
            anew = {"model": os.fspath(model), "recipe": recipe, "part": part}
            original = _in_process({**task, "way": _ANEW, **anew, "dtype": ours["dtype"]}, cancel)
            if "error" in original:
                raise _as_error(original)
        difference, reference = _outputs(place, ours, original, plain, model)
        return VerifyReport(
            folder=str(path),
            model_class=saved.component.cls,
            recipe=ours["recipe"],
            dtype=ours["dtype"],
            weights_difference=max(ours["difference"], original.get("difference", 0.0)),
            output_difference=difference,
            output_reference=reference,
            diffusers_loads=loads,
            diffusers_reason=reason,
            diffusers_output_difference=_difference(place, plain.get("output"), ours["output"]),
            bytes_on_disk=sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
            load_seconds=ours["seconds"],
            quantize_seconds=original.get("seconds"),
        )


def _component_folder(folder: Path, component: str | None) -> Path:
    if (folder / "model_index.json").is_file():
        return read_source(str(folder), folder).component(component).folder
    return folder


def _plain(
    saved: SavedFolder, words: dict[str, str], task: dict, cancel: threading.Event | None
) -> tuple[bool, str, dict]:
    """Return whether plain Diffusers loads the folder, why not, and what it then gave."""
    known, reason = True, ""
    if saved.record is not None:
        known, reason = saved.record.plain_diffusers
    elif words and "quantization_config" not in saved.config:
        known, reason = False, "config.json has no quantization_config: from_quanto adds one"
    if not known:
        return False, reason, {}
    found = _in_process({**task, "way": _PLAIN}, cancel)
    if "error" in found:
        return False, f"{found['error']}{'; ' + reason if reason else ''}", {}
    if found["difference"] > 0:
        return False, f"its weights differ by {_number(found['difference'])}", {}
    return True, reason, found


def _outputs(
    place: str, ours: dict, original: dict, plain: dict, model: object
) -> tuple[float | None, str]:
    if ours["output"] is None:
        return None, f"no inputs are known for its class: {ours['no_output']}"
    if original.get("output") is not None:
        what = "quantized anew" if "seconds" in original else "the original"
        return _difference(place, original["output"], ours["output"]), f"from {what}"
    if plain.get("output") is not None:
        return _difference(place, plain["output"], ours["output"]), "from plain Diffusers"
    return None, "no original was given to compare with"


def _in_process(task: dict, cancel: threading.Event | None) -> dict:
    """Do one task in a fresh process; what it found, or ``{"error": text}``."""
    answer = Path(task["place"]) / f"{task['way']}.json"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(task)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    errors = _wait_for(process, cancel)
    if answer.is_file():
        found = json.loads(answer.read_text(encoding="utf-8"))
        if process.returncode == 0 or "error" in found:
            return found
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return {"error": f"the process was ended by {name} while it {_doing(task)}"}
    last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    return {"error": f"the process failed while it {_doing(task)}: {last}"}


def _wait_for(process: subprocess.Popen, cancel: threading.Event | None) -> str:
    """Wait until a process has ended and return what it wrote as errors; end it if cancelled."""
    with process:
        try:
            while True:
                try:
                    return process.communicate(timeout=_POLL_SECONDS)[1]
                except subprocess.TimeoutExpired:
                    if cancel is not None and cancel.is_set():
                        raise Cancelled("cancelled") from None
        except BaseException:  # Ctrl-C too
            process.kill()
            raise


def _doing(task: dict) -> str:
    return {
        _OURS: "reloaded the model",
        _PLAIN: "loaded and ran the model with plain Diffusers",
        _ANEW: "quantized the model anew",
    }[task["way"]]


def _as_error(found: dict) -> QuantolabError:
    from ... import errors

    return getattr(errors, found.get("kind", ""), UnsupportedError)(found["error"])


def _do(task: dict) -> None:
    """Be the fresh process: load one way, compare with the file, run once, write what came out."""
    answer = Path(task["place"]) / f"{task['way']}.json"
    try:
        saved = open_saved(task["folder"])
        started = time.perf_counter()
        module = _load(task, saved)
        seconds = time.perf_counter() - started
        found = _facts(module, saved, task["way"], task["place"])
        found["seconds"] = seconds
    except QuantolabError as error:
        found = {"error": str(error), "kind": type(error).__name__}
    except Exception as error:  # whatever plain Diffusers raises is an answer, not a crash
        found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    part = answer.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(answer)


def _load(task: dict, saved: SavedFolder) -> torch.nn.Module:
    from ...devices import resolve_device
    from .restoring import load_saved_component

    device = resolve_device(task["device"])
    if task["way"] == _OURS:
        return load_saved_component(saved, device=device)
    if task["way"] == _ANEW:
        from ...models.source import find_model
        from ...recipes import Recipe
        from .reading import load_component

        part = find_model(task["model"]).component(task["part"])
        recipe = Recipe.from_dict(task["recipe"])
        return load_component(part, recipe, dtype=task["dtype"], device=device, strict_skip=False)[
            0
        ]
    from ...models.skeleton import component_class, dtype_keyword, quiet_libraries

    cls = component_class(saved.component)
    name = dtype_keyword(saved.component.library)
    with quiet_libraries():
        module = cls.from_pretrained(
            str(saved.folder), local_files_only=True, **{name: _dtype(saved)}
        )
    # Moving to a device makes Quanto choose its kernels anew: not done where it isn't needed.
    return module if device == "cpu" else module.to(device)


def _dtype(saved: SavedFolder) -> torch.dtype:
    if saved.record is not None:
        return saved.record.dtype
    scales = [e.spec.dtype for n, e in saved.entries.items() if n.endswith("weight._scale")]
    floats = [e.spec.dtype for e in saved.entries.values() if e.spec.dtype.is_floating_point]
    return (scales or floats or [torch.float32])[0]


def _facts(module: torch.nn.Module, saved: SavedFolder, way: str, place: str) -> dict:
    """Return how a module differs from the file, and keep its output under the way's name."""
    report = getattr(module, "quantize_report", None)
    dtype = _dtype(saved)
    facts: dict[str, Any] = {
        "difference": weights_difference(module, saved),
        "recipe": str(report.recipe) if report is not None else "",
        "dtype": str(dtype).removeprefix("torch."),
        "output": None,
    }
    # What Diffusers reloads says "meta" on the outside; its inner tensors say where they are.
    device = next(str(plain.device) for p in module.parameters() for _, plain in inner_tensors(p))
    inputs = sample_inputs(module, dtype, device)
    if inputs is None:
        facts["no_output"] = type(module).__name__
        return facts
    facts["output"] = f"{way}.pt"
    torch.save(first_output(module, inputs), Path(place) / facts["output"])
    return facts


def weights_difference(module: torch.nn.Module, saved: SavedFolder) -> float:
    """Return the greatest difference between a module's weights and those in a folder's files.

    Packed values count as the bytes they are stored in. Infinity if names or shapes differ.
    """
    greatest = 0.0
    left = set(saved.entries)
    with ExitStack() as files:
        stored = _as_safetensors_reads(saved.folder, files)
        for piece in pieces(module):
            for spec, value in zip(piece.specs, piece.values(), strict=True):
                if spec.name not in left:
                    return math.inf
                left.discard(spec.name)
                other = stored[spec.name].get_tensor(spec.name)
                if (other.shape, other.dtype) != (value.shape, value.dtype):
                    return math.inf
                if raw_bytes(value) != raw_bytes(other):
                    apart = (value.detach().cpu().double() - other.double()).abs().max().item()
                    # Unequal bytes are never a difference of 0; NaN isn't either.
                    greatest = max(greatest, apart if apart > 0 else math.inf)
    return math.inf if left else greatest


def _as_safetensors_reads(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Return an open file for each tensor: safetensors' own reader, not the one to be verified."""
    from safetensors import safe_open

    opened = [files.enter_context(safe_open(p, framework="pt")) for p in weight_files(folder)]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118


def _difference(place: str, one: str | None, other: str | None) -> float | None:
    if one is None or other is None:
        return None
    first, second = (torch.load(Path(place) / name, weights_only=True) for name in (one, other))
    if first.shape != second.shape:
        return math.inf
    if torch.equal(first, second):
        return 0.0
    apart = (first.double() - second.double()).abs().nan_to_num(nan=math.inf).max().item()
    return apart


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"


def _times(load_seconds: float, quantize_seconds: float | None) -> str:
    text = format_seconds(load_seconds)
    if quantize_seconds is not None:
        text += f" (quantizing anew: {format_seconds(quantize_seconds)})"
    return text


if __name__ == "__main__":
    _do(json.loads(sys.argv[1]))
