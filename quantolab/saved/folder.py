"""What a saved folder says it holds, read and checked before any weight is: headers and JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..backends import check_installed, stored_form
from ..backends.forms import MARK
from ..errors import (
    BrokenModelError,
    ModelNotFoundError,
    UnsupportedError,
)
from ..files.choosing import WeightFiles, weight_files, weight_map
from ..files.foreign import check_foreign, foreign_method, method_in
from ..files.json_objects import check_inside, read_object
from ..files.layout import FILLER, Entry, FileLayout, Spec, read_layout
from ..files.writing import DIGEST, digest_of
from ..models.skeleton import build_skeleton, check_counts
from ..models.source import Component, find_model
from ..weights import FAMILIES, HOME, QUANTIZED, backends_of, words_of
from .record import RECORD, Record, read_record

QMAP = "quanto_qmap.json"
"""Quanto's own list of quantized layers, beside models saved with Quanto directly."""

_QMAP_WORDS = words_of("quanto")
_QMAP_WORDS["qfloat8"] = _QMAP_WORDS["qfloat8_e4m3fn"]  # Quanto's own short name


@dataclass(frozen=True)
class SavedFolder:
    """One component on disk."""

    folder: Path
    component: Component
    config: dict[str, Any]
    record: Record | None
    """None for folders that others wrote."""
    qmap: dict[str, str] | None
    """Weights dtype by layer from Quanto's own map, if there is one."""
    files: tuple[tuple[Path, FileLayout], ...]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every real tensor of every file by its name."""
        return {
            entry.spec.name: entry
            for _, layout in self.files
            for entry in layout.entries
            if not entry.spec.name.startswith(FILLER)
        }

    def skeleton(self) -> torch.nn.Module:
        """Return the component as its configuration builds it, without weights.

        Raises
        ------
        BrokenModelError
            If it can't be built, for whatever reason.
        """
        limit = len(self.entries)
        where = self.folder / "config.json"
        check_counts(where, self.config, max(limit, 100), f"the files hold {limit} tensors")
        dtype = None if self.record is None else self.record.dtype
        return build_skeleton(self.component, keep_buffers=True, dtype=dtype)


def open_saved(folder: str | os.PathLike[str]) -> SavedFolder:
    """Return what a component's folder holds, everything but payload checked.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder.
    BrokenModelError
        If it isn't a model, or any of its files can't be what it says.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelNotFoundError(f"{os.fspath(folder)!r} is no folder with a saved model")
    check_inside(path, path / "config.json")
    try:
        component = find_model(path).component()
    except RecursionError as error:
        raise BrokenModelError(f"{path / 'config.json'} is nested too deeply") from error
    config = read_object(path / "config.json", path)
    record = read_record(path)
    qmap = _read_qmap(path)
    chosen = weight_files(path, component.library, path)
    files = tuple((file, read_layout(file)) for file in chosen.paths)
    _check_names(chosen, files)
    saved = SavedFolder(path, component, config, record, qmap, files)
    if record is not None:
        _check_record(saved, record)
    return saved


def layer_words(saved: SavedFolder) -> dict[str, str]:
    """Return the weights dtype of each layer that the files hold quantized.

    The files decide which layers those are; what kind they are follows from the types of their
    tensors, and for int4 and int2, which look alike, from what the folder declares.
    """
    specs = {name: entry.spec for name, entry in saved.entries.items()}
    other = _other_backend(saved)
    declared = None if other else _declared_word(saved.folder, saved.config)
    if other:
        words = _words_of_other(saved, other, specs)
    else:
        try:
            found = stored_form(HOME).words_in(specs)
        except BrokenModelError as error:
            raise BrokenModelError(f"{saved.folder}: {error}") from None
        words = {path: _one_word(saved, path, known, declared) for path, known in found.items()}
    specs = {name: spec for name, spec in specs.items() if not _is_inside(name, words)}
    check_foreign(saved.folder, {name: spec.dtype for name, spec in specs.items()})
    _check_declared(saved, words, declared)
    return words


def _other_backend(saved: SavedFolder) -> str | None:
    """Return the backend beside Quanto whose layers a folder says that it holds, if it does."""
    if saved.record is not None:
        used = backends_of(saved.record.quantized_layers.values())
        if len(used) > 1:
            raise BrokenModelError(
                f"{saved.folder / RECORD} names layers of {' and '.join(used)}, and a component "
                "is quantized by one backend"
            )
        return used[0] if used and used[0] != HOME else None
    method = method_in(saved.folder, saved.config)
    return method if method in [family.backend for family in FAMILIES] else None


def _words_of_other(saved: SavedFolder, backend: str, specs: dict[str, Spec]) -> dict[str, str]:
    """Return the words of a folder's layers that a backend beside Quanto quantized."""
    family = next(family for family in FAMILIES if family.backend == backend)
    check_installed(family.examples[:1])
    form = stored_form(backend)
    paths = form.layers_in(specs)
    if saved.record is not None:
        listed = saved.record.quantized_layers
        return {path: listed.get(path, listed[next(iter(listed))]) for path in paths}
    if not paths:
        raise foreign_method(saved.folder, backend)
    words: dict[str, str] = form.declared(saved.config["quantization_config"], paths)
    return words


def _is_inside(name: str, paths: dict[str, str]) -> bool:
    """Return whether a tensor belongs to one of some layers."""
    while name:
        name = name.rpartition(".")[0]
        if name in paths:
            return True
    return "" in paths


def _check_record(saved: SavedFolder, record: Record) -> None:
    where = saved.folder / RECORD
    if record.cls != saved.component.cls:
        raise BrokenModelError(
            f"{where} is of a {record.cls}, config.json of a {saved.component.cls}"
        )
    expected = {path.name for path, _ in saved.files} | {"config.json"}
    if expected != record.digest.files.keys():
        odd = sorted(expected ^ record.digest.files.keys())
        raise BrokenModelError(
            f"{where} and the folder's files disagree about {odd[0]!r}: files were added, taken "
            "away or renamed"
        )


def check_config_digest(saved: SavedFolder) -> None:
    """Raise `BrokenModelError` if ``config.json`` isn't the one that the record knows, if any."""
    if saved.record is None:
        return
    found = digest_of((saved.folder / "config.json").read_bytes())
    recorded = saved.record.digest.files["config.json"]
    if found != recorded:
        raise BrokenModelError(
            f"{saved.folder / 'config.json'} has changed since it was saved: its digest "
            f"({DIGEST}) is {found}, and {recorded} was recorded (check=False reads it anyway)"
        )


def _check_names(chosen: WeightFiles, files: tuple[tuple[Path, FileLayout], ...]) -> None:
    seen: dict[str, str] = {}
    for path, layout in files:
        for name in layout.names:
            if name in seen:
                raise BrokenModelError(f"{name!r} is in both {seen[name]} and {path.name}")
            seen[name] = path.name
    if chosen.index is None:
        return
    said = weight_map(chosen.index)
    for name in said.keys() | seen.keys():
        if said.get(name) != seen.get(name):
            raise BrokenModelError(
                f"{chosen.index} says that {name!r} is in {said.get(name)!r}; it is in "
                f"{seen.get(name)!r}"
            )


def _read_qmap(folder: Path) -> dict[str, str] | None:
    if not (folder / QMAP).exists() and not (folder / QMAP).is_symlink():
        return None
    words = {}
    for path, said in read_object(folder / QMAP, folder).items():
        if not isinstance(said, dict) or not {"weights", "activations"} <= said.keys():
            raise BrokenModelError(
                f"{folder / QMAP} doesn't give weights and activations: {path!r}"
            )
        if said["activations"] != "none":
            raise UnsupportedError(
                f"{folder / QMAP}: {path!r} quantizes activations ({said['activations']}); "
                "only weights can be loaded"
            )
        if said["weights"] not in _QMAP_WORDS:
            raise UnsupportedError(
                f"{folder / QMAP}: {path!r} has weights {said['weights']!r}; known: "
                f"{', '.join(_QMAP_WORDS)}"
            )
        words[path] = _QMAP_WORDS[said["weights"]]
    return words


def _declared_word(folder: Path, config: dict[str, Any]) -> str | None:
    said = config.get("quantization_config")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise BrokenModelError("config.json has a 'quantization_config' that is no object")
    method = method_in(folder, config)
    if method is not None and method not in (HOME, MARK):
        raise foreign_method(folder, method)
    # transformers calls it `weights`.
    word = said.get("weights_dtype", said.get("weights"))
    if word not in (*QUANTIZED, "mixed"):
        raise BrokenModelError(
            f"config.json declares the weights dtype {word!r}; known: {', '.join(QUANTIZED)}"
        )
    return None if word == "mixed" else word


def _one_word(
    saved: SavedFolder, path: str, possible: tuple[str, ...], declared: str | None
) -> str:
    """Return which of the words that a layer's tensors may mean the folder declares."""
    if len(possible) == 1:
        return possible[0]
    for words in (saved.record and saved.record.quantized_layers, saved.qmap):
        if words and words.get(path) in possible:
            return words[path]
    if declared in possible:
        return declared
    raise BrokenModelError(
        f"{saved.folder}: layer {path!r} is quantized to {' or '.join(possible)}, and nothing in "
        "the folder says which"
    )


def _check_declared(saved: SavedFolder, words: dict[str, str], declared: str | None) -> None:
    listed = saved.record.quantized_layers if saved.record is not None else saved.qmap
    source = RECORD if saved.record is not None else QMAP
    if listed is not None and listed != words:
        odd = sorted(p for p in listed.keys() | words.keys() if listed.get(p) != words.get(p))[0]
        raise BrokenModelError(
            f"{saved.folder / source} says that {odd!r} is {listed.get(odd, 'not quantized')}, in "
            f"the weights it is {words.get(odd, 'not quantized')}"
        )
    if declared is not None and set(words.values()) - {declared}:
        path = next(p for p, word in words.items() if word != declared)
        raise BrokenModelError(
            f"{saved.folder / 'config.json'} declares {declared}, but layer {path!r} is "
            f"{words[path]}"
        )
    if declared is not None and not words:
        raise BrokenModelError(
            f"{saved.folder / 'config.json'} declares {declared}, but no layer is quantized"
        )
