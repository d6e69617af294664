"""Which of a repository's files a model needs: from its index and the list of files, no more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import ArgumentError, BrokenModelError
from ..files.choosing import Chosen, choose, variants

CONFIGS = ("config.json", "scheduler_config.json")
_BESIDE_WEIGHTS = ("generation_config.json",)
_WEIGHTS = re.compile(
    r"\.(?:safetensors|sft|bin|msgpack|h5|gguf|pt|pth|ckpt|onnx|pb|xml)(?:\.index(?:\.[\w-]+)?\.json)?$"
)
_TEXT = (".json", ".jsonl", ".txt", ".model", ".jinja", ".tiktoken")  # of tokenizers and processors
# Classes of transformers that have no weights: what prepares text and pictures, and schedules.
_NO_WEIGHTS = re.compile(r"Tokenizer|Processor|FeatureExtractor|Scheduler")


@dataclass(frozen=True)
class Needed:
    """What has to be there."""

    configs: tuple[str, ...]
    """Paths of configurations, and of the indexes that name shards."""
    beside: tuple[str, ...] = ()
    """Tokenizers and the like."""
    weights: tuple[tuple[str, Chosen], ...] = ()
    """(folder, what was chosen in it)."""


def parts_of(index: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Return a pipeline's parts by name: (library, class)."""
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(word, str) for word in entry)
        and not name.startswith("_")
        and "/" not in name
        and name not in (".", "..")
    }


def of_pipeline(
    index: Mapping[str, object],
    files: Iterable[str],
    base: str,
    where: str,
    *,
    wanted: Iterable[str] | None,
    all_parts: bool,
    variant: str | None,
) -> Needed:
    """Return what a pipeline needs.

    Parameters
    ----------
    index : mapping
        Its ``model_index.json``.
    files : iterable of str
        Paths of all files that there are.
    base : str
        Its folder inside the repository, empty or with a slash at its end.
    where : str
        The model, for the text of an error.
    wanted : iterable of str, optional
        Parts whose weights are needed; None for all.
    all_parts : bool
        Whether the pipeline itself will be put together, for which tokenizers are needed too.
    variant : str, optional
        Of the weights.

    Raises
    ------
    ArgumentError
        If no part has the variant; the text names those that are there.
    BrokenModelError
        If a part has no weights that can be read.
    """
    inside = _by_folder(files, base)
    parts = {name: entry for name, entry in parts_of(index).items() if name in inside}
    wanted = list(parts) if wanted is None else list(wanted)
    _check_variant(variant, {n: inside[n] for n in wanted if n in parts}, parts, where)
    configs, beside, weights = [], [], []
    for name, (library, cls) in parts.items():
        names = inside[name]
        folder = f"{base}{name}/"
        configs += [folder + file for file in CONFIGS if file in names]
        if all_parts:
            beside += [folder + file for file in sorted(names) if _is_beside(file, names)]
        if name in wanted and "config.json" in names and not _NO_WEIGHTS.search(cls):
            own = "diffusers" if library == "diffusers" else "transformers"
            chosen = choose(names, own, f"{where}/{name}", variant)
            weights.append((folder, chosen))
            configs += [folder + chosen.name] if chosen.is_index else []
    return Needed(tuple(configs), tuple(beside), tuple(weights))


def of_component(
    library: str, files: Iterable[str], base: str, where: str, variant: str | None
) -> Needed:
    """Return what one component in a folder of its own needs; arguments as for `of_pipeline`."""
    names = {p.removeprefix(base) for p in files if p.startswith(base)}
    names = {name for name in names if "/" not in name}
    _check_variant(variant, {"": names}, {"": (library, "")}, where)
    chosen = choose(names, library, where, variant)
    configs = (base + chosen.name,) if chosen.is_index else ()
    beside = tuple(base + name for name in _BESIDE_WEIGHTS if name in names)
    return Needed(configs, beside, ((base, chosen),))


def _by_folder(files: Iterable[str], base: str) -> dict[str, set[str]]:
    """Return names of the files right inside each folder of the base."""
    found: dict[str, set[str]] = {}
    for path in files:
        folder, slash, name = path.removeprefix(base).partition("/")
        if path.startswith(base) and slash and "/" not in name:
            found.setdefault(folder, set()).add(name)
    return found


def _is_beside(file: str, names: set[str]) -> bool:
    if any(_WEIGHTS.search(name) for name in names):
        return file in _BESIDE_WEIGHTS
    return file.endswith(_TEXT) and file not in CONFIGS


def _check_variant(
    variant: str | None,
    names: Mapping[str, set[str]],
    parts: Mapping[str, tuple[str, str]],
    where: str,
) -> None:
    if variant is None:
        return
    there = {name: variants(names[name], _library(parts[name])) for name in names}
    if any(variant in found for found in there.values()):
        return
    known = sorted({word for found in there.values() for word in found})
    hint = f"there are: {', '.join(known)}" if known else "it has plain files only"
    raise ArgumentError(f"{where} has no variant {variant!r}; {hint}")


def _library(entry: tuple[str, str]) -> str:
    return "diffusers" if entry[0] == "diffusers" else "transformers"


def one_variant(chosen: Mapping[str, str | None], where: object) -> str | None:
    """Return the variant that a pipeline is loaded in; Diffusers takes one for all its parts.

    Raises
    ------
    BrokenModelError
        If its parts are there in several, and none was asked for.
    """
    found = sorted({variant for variant in chosen.values() if variant is not None})
    if len(found) > 1:
        raise BrokenModelError(
            f"the parts of {where} are there in several variants ({', '.join(found)}) and not "
            "plain, and Diffusers loads a pipeline in one"
        )
    return found[0] if found else None
