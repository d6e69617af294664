"""A saved folder in another backend's form: the same values and scales, nothing quantized again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..arguments import public
from ..backends import check_backend, exchange, quantized_layers
from ..errors import ArgumentError, BrokenModelError, UnsupportedError, one_of
from ..files.whole import new_folder
from ..loading.placing import put_module
from ..loading.report import QuantizeReport, note_config
from ..measure.held_bytes import weight_bytes
from ..models.layers import linear_layers
from ..text_tables import ShownAsText, text_columns
from ..units import format_bytes, format_count, format_digits
from ..weights import EXPORT, FORMS, backends_of
from .doors import load_saved
from .exporting import ExportReport, export
from .pipelines import write_pipeline
from .writing import check_replaceable, recipe_of, unwrapped, write_component


@dataclass(frozen=True)
class ConvertReport(ShownAsText):
    """What became of a saved folder in another backend's form."""

    folder: str
    out: str
    to: str
    recipes: dict[str, str]
    """Recipe of each converted component, in the new backend's words; of one alone by ``""``."""
    layers: int
    """How many layers were converted."""
    weights_difference: float
    """The greatest between the weights that both folders stand for, read back. Must be 0."""
    weight_bytes_before: int
    weight_bytes: int
    """In memory."""

    def __str__(self) -> str:
        rows = [
            ("saved model", self.folder),
            ("converted to", f"{self.out} ({self.to})"),
            *((f"  {name or 'recipe'}", recipe) for name, recipe in self.recipes.items()),
            ("layers", format_count(self.layers, "layer")),
            ("greatest difference of weights", format_digits(self.weights_difference)),
            (
                "in memory",
                f"{format_bytes(self.weight_bytes)} ({format_bytes(self.weight_bytes_before)} "
                "before)",
            ),
        ]
        return "\n".join(text_columns(rows, "ll"))


@public
def convert(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "sdnq",
    *,
    gguf_type: str | None = None,
    names: str = "auto",
) -> ConvertReport | ExportReport:
    """Convert a saved model into another backend's form, without quantizing anything again.

    Values and scales stay what they are, and so do the layers that are kept: the new folder
    stands for the same weights, to the last bit in float32, which is checked by reading it back.
    Plain Diffusers reads it with that backend.

    GGUF is an export for other programs, which nothing here loads: int8, int4 and int2 are carried
    over as they are, float8 and what GGUF's float16 scales don't hold is quantized anew, and the
    report says which, and how far it is from before.

    Parameters
    ----------
    folder : str or path
        A component or a pipeline that `load_saved` reads.
    out : str or path
        Where to write; a model saved there before is replaced. For GGUF a folder, which gets a
        file a component and its configuration beside it, or a name that ends in ``.gguf``.
    to : str
        ``"sdnq"``, which takes all of Quanto's words; ``"torchao"``, int8 and float8;
        ``"quanto"``, what came from it; or ``"gguf"``.
    gguf_type : str, optional
        ``"Q8_0"``, ``"Q5_1"``, ``"Q5_0"``, ``"Q4_1"`` or ``"Q4_0"``, for all quantized layers; by
        default the one that says the most of each: Q8_0 for 8 bits, Q4_1 for int4 and int2.
    names : str
        Of the tensors in a GGUF file: ``"original"``, the makers' names that other programs look
        for; ``"diffusers"``; or ``"auto"``: the makers' where plain Diffusers reads them.

    Returns
    -------
    ConvertReport or ExportReport
        Prints as a small table.

    Raises
    ------
    ArgumentError
        If nothing in the folder is quantized, or all of it is in that form already; or an
        argument isn't one of those allowed.
    UnsupportedError
        If a layer has no such form, which is named; or the backend isn't installed. Nothing is
        written then.
    ModelNotFoundError, BrokenModelError, OutputError
        If the folder can't be read, or `out` can't be written.

    Examples
    --------
    >>> convert("demo-int8", "demo-int8-sdnq", to="sdnq").weights_difference
    0.0
    """
    one_of("backend", to, (*FORMS, EXPORT))
    check_backend(to)
    if to == EXPORT:
        return export(folder, out, gguf_type, names)
    if gguf_type is not None or names != "auto":
        raise ArgumentError(f"gguf_type and names are for to='gguf', and to is {to!r}")
    target = Path(out).expanduser()
    check_replaceable(target)
    whole = load_saved(folder, device="cpu")
    before, count = weight_bytes(whole), 0
    recipes = {}
    for name, module in _parts(whole).items():
        words = quantized_layers(module)
        if words and backends_of(words.values()) != (to,):
            changed = _changed(module, words, to, name)
            recipes[name], count = str(changed.quantize_report.recipe), count + len(words)
            if name:
                setattr(whole, name, changed)
            else:
                whole = changed
    if not recipes:
        raise ArgumentError(f"{os.fspath(folder)!r} holds no layer in another form than {to}'s")
    with new_folder(target) as fresh:
        if isinstance(whole, torch.nn.Module):
            write_component(unwrapped(whole), fresh)
        else:
            write_pipeline(whole, fresh)
        held = weight_bytes(whole)
        del whole
        difference = _difference(folder, fresh)
        if difference:
            raise BrokenModelError(
                f"what was written isn't what {os.fspath(folder)!r} holds: weights differ by "
                f"{format_digits(difference)}"
            )
    return ConvertReport(
        os.fspath(folder), str(target), to, recipes, count, difference, before, held
    )


def _parts(whole: Any) -> dict[str, torch.nn.Module]:
    if isinstance(whole, torch.nn.Module):
        return {"": whole}
    return {n: p for n, p in whole.components.items() if isinstance(p, torch.nn.Module)}


def _changed(
    module: torch.nn.Module, words: dict[str, str], to: str, component: str
) -> torch.nn.Module:
    """Return a component with each quantized layer in another form, one layer at a time."""
    layers = {layer.path: layer for layer in linear_layers(module)}
    old = backends_of(words.values())[0]
    for path in words:
        part: Any = module.get_submodule(path)
        try:
            if path not in layers:
                raise UnsupportedError(f"it is a {type(part).__name__}")
            values = exchange(old).values_of(part)
            dtype = part.bias.dtype if part.bias is not None else _dtype(module)
            new = exchange(to).layer_of(values, layers[path], part.bias, dtype)
        except UnsupportedError as error:
            name = f"{component}.{path}" if component else path
            raise UnsupportedError(
                f"layer {name!r} ({words[path]}) can't be converted to {to}: {error}"
            ) from None
        module = put_module(module, path, new.eval())
    words = quantized_layers(module)
    kept = [path for path in layers if path not in words]
    report = getattr(module, "quantize_report", None)
    note_config(module, words, kept)
    module.quantize_report = QuantizeReport(
        recipe_of(words, kept),
        tuple(words),
        report.kept if report is not None else (),
        (),
        weight_bytes(module),
        tuple(words.values()),
    )
    return module


def _dtype(module: torch.nn.Module) -> torch.dtype:
    dtype: torch.dtype = module.dtype
    return dtype


def _difference(folder: str | os.PathLike[str], out: Path) -> float:
    """Return the greatest difference between the weights of two folders' quantized layers."""
    one, other = (load_saved(place, device="cpu") for place in (folder, out))
    greatest = 0.0
    theirs = _parts(other)
    for name, module in _parts(one).items():
        words, now = quantized_layers(module), quantized_layers(theirs[name])
        if words.keys() != now.keys():
            return float("inf")
        for path, word in words.items():
            first, second = (
                exchange(backends_of((w,))[0]).values_of(m.get_submodule(path)).dequantized()
                for m, w in ((module, word), (theirs[name], now[path]))
            )
            apart = (first - second).abs().max().item()
            greatest = max(greatest, apart if apart >= 0 else float("inf"))
    return greatest
