"""A saved model as a GGUF file, for other programs: carried over where its blocks can say the same.

Where they can't (float8, scales that float16 doesn't hold), layers are quantized anew, and the
report says which. The file is read back before it takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends import exchange, file_form, quantized_layers, stored_form_of
from ..errors import ArgumentError, BrokenModelError, OutputError, UnsupportedError, one_of
from ..files.whole import new_folder, workplace, write_whole
from ..measure.held_bytes import weight_bytes
from ..models.original_names import Part, architecture, joined, original_names
from ..text_tables import ShownAsText, text_columns
from ..units import format_bytes, format_count, format_digits
from ..weights import backends_of, weights_of
from .doors import load_saved
from .writing import component_config, library_of, recipe_of, unwrapped, versions

ENDING = ".gguf"

NAMES = ("auto", "diffusers", "original")
"""Whose names a file's tensors have."""


@dataclass(frozen=True)
class ExportReport(ShownAsText):
    """What became of a saved model as GGUF files."""

    folder: str
    out: str
    to: str
    files: tuple[str, ...]
    """What was written, paths inside `out` (`out` itself where that is a file)."""
    recipes: dict[str, str]
    """Recipe of each exported component, as it was saved; of one alone by ``""``."""
    names: dict[str, str]
    """Whose names the tensors of each have, and why."""
    layers: int
    """How many layers are quantized in the files."""
    carried: int
    """How many of them stand for the same weights as before, to the last bit."""
    requantized: dict[str, float]
    """Relative error of each layer that was quantized anew, by its path."""
    unquantized: dict[str, str]
    """Layers that were quantized and aren't in the files, with why."""
    types: dict[str, int]
    """How many layers have each type of GGUF."""
    weights_difference: float
    """The greatest between the weights before and those in the files, read back."""
    weight_bytes_before: int
    weight_bytes: int
    """Of all tensors in the files."""

    def __str__(self) -> str:
        types = ", ".join(f"{count} {kind}" for kind, count in self.types.items())
        again = "none"
        if self.requantized:
            worst = max(self.requantized, key=self.requantized.__getitem__)
            again = (
                f"{format_count(len(self.requantized), 'layer')}, relative error up to "
                f"{format_digits(self.requantized[worst])} ({worst!r})"
            )
        rows = [
            ("saved model", self.folder),
            ("exported to", f"{self.out} ({self.to}: {', '.join(self.files)})"),
            *((f"  {name or 'recipe'}", recipe) for name, recipe in self.recipes.items()),
            *((f"  names{' of ' + n if n else ''}", said) for n, said in self.names.items()),
            ("layers", f"{self.layers} ({types})"),
            ("  carried over exactly", format_count(self.carried, "layer")),
            ("  quantized anew", again),
            *(
                (f"  {path}", f"written unquantized: {why}")
                for path, why in self.unquantized.items()
            ),
            ("greatest difference of weights", format_digits(self.weights_difference)),
            (
                "tensors",
                f"{format_bytes(self.weight_bytes)} in the file, "
                f"{format_bytes(self.weight_bytes_before)} in memory before",
            ),
        ]
        return "\n".join(text_columns(rows, "ll"))


@dataclass
class _Told:
    """What is found out while files are written."""

    carried: int = 0
    requantized: dict[str, float] = field(default_factory=dict)
    unquantized: dict[str, str] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    difference: float = 0.0
    nbytes: int = 0


def export(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    gguf_type: str | None,
    names: str,
) -> ExportReport:
    """Write a saved model as GGUF; see `changing.convert`, which is the door to it."""
    form = file_form()
    one_of("names", names, NAMES)
    if gguf_type is not None:
        one_of("GGUF type", gguf_type, form.TYPES)
    target = Path(out).expanduser()
    whole = load_saved(folder, device="cpu")
    before = weight_bytes(whole)
    parts = _quantized_parts(whole, os.fspath(folder))
    alone = isinstance(whole, torch.nn.Module)
    single = target.suffix.casefold() == ENDING
    if single and len(parts) > 1:
        raise ArgumentError(
            f"{os.fspath(folder)!r} holds {format_count(len(parts), 'quantized component')}, a "
            f"file each; out must be a folder, and {os.fspath(out)!r} names a file"
        )
    files = {name: f"{name or _stem(folder)}{ENDING}" for name in parts}
    _check_replaceable(target, {*files.values()}, {"" if alone else name for name in parts})
    told, said = _Told(), {}
    for name, module in parts.items():
        # All that can be refused is, before anything is written.
        said[name] = _planned(module, name, gguf_type, names, told)
    if single:
        with workplace(target.parent) as work:
            fresh = work / "whole"
            _write(fresh, *next(iter(said.values())), told)
            fresh.replace(target)
    else:
        with new_folder(target) as fresh:
            for name, module in parts.items():
                _write(fresh / files[name], *said[name], told)
                place = fresh if alone else fresh / name
                place.mkdir(exist_ok=True)
                write_whole(place / "config.json", _config_text(module))
    words = {name: quantized_layers(module) for name, module in parts.items()}
    return ExportReport(
        os.fspath(folder),
        str(target),
        "gguf",
        (target.name,) if single else tuple(files.values()),
        {name: _recipe_text(module, words[name]) for name, module in parts.items()},
        {name: plan[2] for name, plan in said.items()},
        sum(told.types.values()),
        told.carried,
        told.requantized,
        told.unquantized,
        told.types,
        told.difference,
        before,
        told.nbytes,
    )


def _stem(folder: str | os.PathLike[str]) -> str:
    return Path(folder).expanduser().resolve().name or "model"


def _quantized_parts(whole: Any, folder: str) -> dict[str, torch.nn.Module]:
    """Return the components to export.

    Raises
    ------
    ArgumentError, UnsupportedError
        If nothing is quantized, or a part of transformers' is.
    """
    if isinstance(whole, torch.nn.Module):
        parts = {"": unwrapped(whole)}
    else:
        parts = {n: p for n, p in whole.components.items() if isinstance(p, torch.nn.Module)}
    parts = {name: part for name, part in parts.items() if quantized_layers(part)}
    if not parts:
        raise ArgumentError(f"{folder!r} holds no quantized layer")
    for name, part in parts.items():
        if library_of(part) != "diffusers":
            path, word = next(iter(quantized_layers(part).items()))
            raise UnsupportedError(
                f"layer {_full(name, path)!r} ({word}) can't be exported to gguf: files of text "
                f"encoders have llama.cpp's names and tokenizers, which aren't made here from a "
                f"{type(part).__name__}; the folder of a denoiser alone can be exported"
            )
    return parts


def _full(component: str, path: str) -> str:
    return f"{component}.{path}" if component else path


def _recipe_text(module: torch.nn.Module, words: dict[str, str]) -> str:
    report = getattr(module, "quantize_report", None)
    return str(report.recipe if report is not None else recipe_of(words, ()))


def _config_text(module: torch.nn.Module) -> str:
    import json

    return json.dumps(component_config(module, "diffusers"), indent=2, sort_keys=True) + "\n"


def _check_replaceable(target: Path, files: set[str], components: set[str]) -> None:
    """Make sure that nothing but an earlier export is replaced.

    Raises
    ------
    OutputError
        If something else is there.
    """
    if target.is_file() and target.suffix.casefold() == ENDING:
        _check_ours(target)
        return
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.suffix.casefold() == ENDING:
        kind = "folder" if target.is_dir() else "file"
        raise OutputError(f"{str(target)!r} is there already, a {kind}; it is left as it is")
    for path in target.iterdir():
        known = path.name in files or path.name == "config.json" or path.name in components
        if not known:
            raise OutputError(
                f"{str(target)!r} is there and holds {path.name!r}, which wasn't exported by "
                "quantolab; it is left as it is. Export to a new folder, or remove this one"
            )
        if path.suffix == ENDING:
            _check_ours(path)
    if any(target.iterdir()) and not any(target.glob("*" + ENDING)):
        raise OutputError(
            f"{str(target)!r} is there and isn't an export of quantolab; it is left as it is"
        )


def _check_ours(path: Path) -> None:
    form = file_form()
    if form.MARK not in form.notes_of(path):
        raise OutputError(
            f"{str(path)!r} is there and wasn't exported by quantolab; it is left as it is"
        )


def _planned(
    module: torch.nn.Module, component: str, gguf_type: str | None, names: str, told: _Told
) -> tuple[torch.nn.Module, list[Any], str]:
    """Return a component with its tensors planned, and whose names they have."""
    words = quantized_layers(module)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in _others(module, words).items():
        shapes[name] = tuple(tensor.shape)
    for path, word in words.items():
        part: Any = module.get_submodule(path)
        if not isinstance(part, torch.nn.Linear):
            raise UnsupportedError(
                f"layer {_full(component, path)!r} ({word}) can't be exported to gguf: it is a "
                f"{type(part).__name__}"
            )
        shapes[f"{path}.weight"] = (part.out_features, part.in_features)
    layout, said = _layout(module, shapes, names, component)
    kinds = _kinds(module, words, layout, component, gguf_type, told)
    form = file_form()
    entries = []
    for name, parts in layout.items():
        value = partial(_value, module, words, parts, kinds[name], component, told)
        entries.append(form.Entry(name, kinds[name], _joined_shape(parts, shapes), value))
    return module, entries, said


def _others(module: torch.nn.Module, words: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return the tensors that aren't quantized, by name: each once, whatever shares it."""
    found: dict[str, torch.Tensor] = {}
    for path, part in module.named_modules():
        own: dict[str, Any] = {}
        prefix = f"{path}." if path else ""
        if path in words:
            own = {prefix + "bias": getattr(part, "bias", None)}
        elif not any(path.startswith(f"{owner}.") for owner in words):
            part._save_to_state_dict(own, prefix, keep_vars=False)
        found |= {name: t.detach() for name, t in own.items() if isinstance(t, torch.Tensor)}
    return found


def _layout(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    names: str,
    component: str,
) -> tuple[dict[str, tuple[Part, ...]], str]:
    """Return the file's tensors as parts of the model's, and whose names they have."""
    own = {name: (Part(name),) for name in shapes}
    cls = type(module).__name__
    if names == "diffusers":
        return own, "Diffusers' own"
    found = original_names(module, shapes, own_width=names == "original")
    if found is not None:
        return found, f"the makers' own ({architecture(cls)}), as other programs expect them"
    if names == "original":
        raise UnsupportedError(
            f"{component or 'the model'} can't have its makers' names: quantolab has no table of "
            f"them for {cls} that Diffusers' conversion reads back"
        )
    wide = original_names(module, shapes, own_width=True)
    if wide is not None:
        return own, (
            "Diffusers' own: plain Diffusers reads the makers' names at one width only (3072); "
            "names='original' writes them"
        )
    return own, f"Diffusers' own: no table of the makers' names of {cls}"


def _kinds(
    module: torch.nn.Module,
    words: Mapping[str, str],
    layout: Mapping[str, tuple[Part, ...]],
    component: str,
    gguf_type: str | None,
    told: _Told,
) -> dict[str, str]:
    """Return the type of each tensor of a file."""
    form = file_form()
    found = {}
    for name, parts in layout.items():
        layers = {p.name: p.name.removesuffix(".weight") for p in parts}
        quantized = [path for name, path in layers.items() if path in words and path != name]
        found[name] = form.PLAIN
        if not quantized:
            continue
        why = ""
        if len(quantized) < len(parts):
            kept = next(path for path in layers.values() if path not in words)
            why = f"the file has it in one tensor with {_full(component, kept)!r}, which is kept"
        for path in quantized:
            columns = module.get_submodule(path).in_features
            if columns % form.BLOCK:
                why = f"its rows of {columns} values aren't in whole blocks of {form.BLOCK}"
        if why:
            told.unquantized |= {_full(component, path): why for path in quantized}
            continue
        chosen = [
            gguf_type
            or form.best_type(_values(module, path, words[path]), weights_of(words[path]).bits or 8)
            for path in quantized
        ]
        found[name] = min(chosen, key=form.TYPES.index)
        told.types[found[name]] = told.types.get(found[name], 0) + len(quantized)
    return found


def _values(module: torch.nn.Module, path: str, word: str) -> Any:
    """Return a layer's values and scales; None where it is made of more than those."""
    try:
        return exchange(backends_of((word,))[0]).values_of(module.get_submodule(path))
    except UnsupportedError:
        return None


def _joined_shape(
    parts: tuple[Part, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    first, *others = (shapes[part.name] for part in parts)
    return (first[0] + sum(shape[0] for shape in others), *first[1:]) if others else first


def _value(
    module: torch.nn.Module,
    words: Mapping[str, str],
    parts: tuple[Part, ...],
    kind: str,
    component: str,
    told: _Told,
) -> np.ndarray:
    """Return one tensor of a file, with what became of its layers."""
    form = file_form()
    rows: dict[str, torch.Tensor] = {}
    for part in parts:
        owner, _, leaf = part.name.rpartition(".")
        if leaf != "weight" or owner not in words:
            rows[part.name] = _tensor(module, part.name).float().cpu()
            continue
        values = _values(module, owner, words[owner])
        plain = _plain(module, owner, values)
        if kind == form.PLAIN:
            rows[part.name] = plain
            continue
        blocks = form.carried(values, kind) if values is not None else None
        full = _full(component, owner)
        if blocks is not None:
            told.carried += 1
        else:
            try:
                blocks = form.made(plain.numpy(), kind)
            except UnsupportedError as error:
                raise UnsupportedError(
                    f"layer {full!r} ({words[owner]}) can't be exported to gguf: {error}"
                ) from None
            apart = torch.from_numpy(form.plain(blocks, kind)) - plain
            told.requantized[full] = float(apart.norm() / plain.norm().clamp_min(1e-30))
        rows[part.name] = torch.from_numpy(blocks)
    whole: np.ndarray = joined(parts, rows).contiguous().numpy()
    return whole


def _tensor(module: torch.nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(owner), leaf)
    assert isinstance(found, torch.Tensor)
    return found.detach()


def _plain(module: torch.nn.Module, path: str, values: Any) -> torch.Tensor:
    """Return the weight that a layer stands for, in float32."""
    if values is not None:
        found: torch.Tensor = values.dequantized()
        return found
    part = module.get_submodule(path)
    plain: torch.Tensor = stored_form_of(part).plain_weight(part).float()
    return plain


def _write(
    path: Path, module: torch.nn.Module, entries: list[Any], names: str, told: _Told
) -> None:
    """Write one file, read it back, and note how far it is from the model.

    Raises
    ------
    BrokenModelError
        If what is read isn't what was written.
    """
    form = file_form()
    words = quantized_layers(module)
    notes = {
        form.MARK: versions()["quantolab"],
        "quantolab.recipe": _recipe_text(module, words),
        "quantolab.class": type(module).__name__,
    }
    form.write_gguf(path, architecture(type(module).__name__), notes, entries)
    waiting = {entry.name: entry for entry in entries}
    for name, kind, value in form.read_gguf(path):
        entry = waiting.pop(name, None)
        if entry is None or (kind, value.shape) != (entry.kind, tuple(entry.shape)):
            raise BrokenModelError(f"{name!r} in what was written isn't what was planned")
        told.nbytes += form.blocks_bytes(entry.shape, kind)
        parts = entry.value.args[2]
        plains = {part.name: _as_it_was(module, words, part.name) for part in parts}
        apart = np.abs(joined(parts, plains).numpy() - value).max(initial=0.0)
        if kind == form.PLAIN and apart:
            raise BrokenModelError(f"{name!r} in what was written isn't what it was")
        told.difference = max(told.difference, float(apart))
    if waiting:
        raise BrokenModelError(f"{next(iter(waiting))!r} is missing in what was written")


def _as_it_was(module: torch.nn.Module, words: Mapping[str, str], name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    if leaf == "weight" and owner in words:
        return _plain(module, owner, _values(module, owner, words[owner]))
    return _tensor(module, name).float().cpu()
