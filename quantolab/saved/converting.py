"""Checkpoints of Quanto itself become Diffusers' form and back, bit for bit.

Both hold the same tensors under the same names; what differs is the file that says which layers
are quantized: ``quanto_qmap.json`` there, ``quantization_config`` in ``config.json`` here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from ..arguments import public
from ..backends import diffusers_form
from ..errors import UnsupportedError
from ..files.choosing import INDEX, STEMS
from ..files.layout import Piece, index_text, plan_files, specs_of
from ..files.reading import read_tensors
from ..files.whole import new_folder, write_whole
from ..files.writing import DIGEST, write_files
from ..weights import HOME, backends_of, weights_of
from .folder import QMAP, SavedFolder, check_config_digest, layer_words, open_saved
from .record import Digests, Dtype, PlainDiffusers, Record
from .restoring import waiting_module
from .writing import check_replaceable, dtype_name, recipe_of, versions, write_folder


@public
def from_quanto(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], *, require_diffusers: bool = True
) -> Path:
    """Convert a checkpoint that Quanto saved into one that Diffusers and `load_saved` load.

    Parameters
    ----------
    folder : str or path
        Holds ``config.json``, ``quanto_qmap.json`` and safetensors.
    out : str or path
        Where to write; a saved model there is replaced.
    require_diffusers : bool
        Whether plain Diffusers must be able to load the result. With False, one that its rules
        can't express is written all the same, marked so that Diffusers refuses it, for
        `load_saved` alone.

    Returns
    -------
    Path
        The new folder.

    Raises
    ------
    UnsupportedError
        If activations are quantized, or, with `require_diffusers`, if there are several weights
        dtypes, quantized convolutions, or skipped layers that leaf names can't express.
    ModelNotFoundError, BrokenModelError, OutputError
        If the folder can't be read, or `out` can't be written.
    """
    saved, words, module, kept = _opened(folder)
    form = diffusers_form(module, words, kept, saved.component.library)
    if require_diffusers and not form.loads:
        raise UnsupportedError(
            f"{os.fspath(folder)!r} can't be converted for plain Diffusers: {form.reason}. "
            "require_diffusers=False converts it for load_saved alone"
        )
    config = {k: v for k, v in saved.config.items() if k != "quantization_config"}
    if form.quantization_config is not None:
        config["quantization_config"] = form.quantization_config
    record = Record(
        cls=saved.component.cls,
        library=saved.component.library,
        recipe=recipe_of(words, kept),
        dtype=_dtype(saved),
        quantized_layers=words,
        skipped_layers=tuple(kept),
        reasons={},
        cures=(),
        tied={},
        buffers={},
        plain_diffusers=PlainDiffusers(form.loads, form.reason),
        versions=versions(),
        digest=Digests(DIGEST, {}),
    )
    target = Path(out).expanduser()
    check_replaceable(target)
    with new_folder(target) as fresh:
        write_folder(fresh, _stored(saved), config, record)
    return target


@public
def to_quanto(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Convert a saved model into a checkpoint that Quanto itself loads.

    Parameters
    ----------
    folder : str or path
        A component that `save` wrote, or Diffusers with a ``QuantoConfig``.
    out : str or path
        Where to write: ``config.json``, ``quanto_qmap.json`` and safetensors, for
        ``optimum.quanto.QuantizedDiffusersModel`` or ``optimum.quanto.requantize``. Any choice of
        skipped layers can be expressed there.

    Returns
    -------
    Path
        The new folder.

    Raises
    ------
    UnsupportedError
        If the model isn't quantized: Quanto has no form for that.
    ModelNotFoundError, BrokenModelError, OutputError
        If the folder can't be read, or `out` can't be written.
    """
    saved, words, _, _ = _opened(folder)
    if not words:
        raise UnsupportedError(
            f"{os.fspath(folder)!r} isn't quantized, so Quanto has no map for it"
        )
    if backends_of(words.values()) != (HOME,):
        raise UnsupportedError(
            f"{os.fspath(folder)!r} is quantized by {backends_of(words.values())[0]}, for which "
            "Quanto's map has no words: convert(..., to='quanto') first"
        )
    target = Path(out).expanduser()
    check_replaceable(target, mark=QMAP)
    config = {k: v for k, v in saved.config.items() if k != "quantization_config"}
    qmap = {
        path: {"weights": weights_of(word).name, "activations": "none"}
        for path, word in words.items()
    }
    stem = STEMS[saved.component.library]
    with new_folder(target) as fresh:
        parts = _stored(saved)
        layouts = plan_files(specs_of(parts), stem)
        write_files(parts, layouts, fresh)
        if text := index_text(layouts):
            write_whole(fresh / (stem + INDEX), text + "\n")
        write_whole(fresh / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_whole(fresh / QMAP, json.dumps(qmap, indent=4) + "\n")
    return target


def _opened(
    folder: str | os.PathLike[str],
) -> tuple[SavedFolder, dict[str, str], torch.nn.Module, list[str]]:
    """Return what a folder holds, checked against the class that its configuration names."""
    saved = open_saved(folder)
    words = layer_words(saved)
    check_config_digest(saved)
    module, _, kept = waiting_module(saved, words)
    return saved, words, module, kept


def _stored(saved: SavedFolder) -> list[Piece]:
    """Return a folder's tensors as they are, one at a time; digests are checked on the way.

    The pieces are made for one reader that takes them in order.
    """
    parts = []
    for path, layout in saved.files:
        digest = saved.record.digest.files[path.name] if saved.record is not None else None
        reader = read_tensors(path, layout, digest)
        specs = [e.spec for e in layout.entries if e.spec.name in saved.entries]
        for spec in specs:
            parts.append(Piece((spec,), partial(_next_value, reader, spec is specs[-1])))
    return parts


def _next_value(reader: Iterator[tuple[str, torch.Tensor]], is_last: bool) -> list[torch.Tensor]:
    value = next(reader)[1]
    if is_last:
        next(reader, None)  # compares the digest
    return [value]


def _dtype(saved: SavedFolder) -> Dtype:
    kinds = [e.spec.dtype for n, e in saved.entries.items() if n.endswith("weight._scale")]
    kinds = kinds or [e.spec.dtype for e in saved.entries.values()]
    return dtype_name(max(set(kinds), key=kinds.count))
