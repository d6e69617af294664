"""What a saved folder says it holds, read and checked before any weight is: headers and JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ...errors import BrokenModelError, ModelNotFoundError, QuantolabError, UnsupportedError
from ...models.skeleton import build_skeleton, component_class
from ...models.source import Component, find_model
from ...recipes import COMPUTE_DTYPES, WEIGHTS, Recipe
from .files import DIGEST, FILLER, INDEX, Entry, FileLayout, digest_of, read_layout, unique_pairs
from .saving import FORMAT, RECORD

QMAP = "quanto_qmap.json"
"""Quanto's own list of quantized layers, beside models saved with Quanto directly."""

_QMAP_WORDS = {
    "qint8": "int8", "qint4": "int4", "qint2": "int2",
    "qfloat8": "float8", "qfloat8_e4m3fn": "float8",
}  # fmt: skip
_JSON_LIMIT = 200_000_000  # bytes; an index of a large model has a few million


@dataclass(frozen=True)
class Record:
    """A checked `quantolab.json`."""

    recipe: Recipe
    dtype: torch.dtype
    quantized: dict[str, str]
    reasons: dict[str, str]
    cures: tuple[tuple[str, str], ...]
    tied: dict[str, str]
    buffers: dict[str, torch.dtype]
    digests: dict[str, str]
    plain_diffusers: tuple[bool, str]
    """Whether plain Diffusers loads the folder, and why not."""
    values: dict = field(repr=False, default_factory=dict)
    """The file as it stands."""


@dataclass(frozen=True)
class SavedFolder:
    """One component on disk."""

    folder: Path
    component: Component
    config: dict
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
        _check_counts(self)
        try:
            component_class(self.component)
            return build_skeleton(self.component, keep_buffers=True)
        except QuantolabError:
            raise
        except Exception as error:  # a malformed configuration fails in as many ways as it has
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BrokenModelError(
                f"{self.folder / 'config.json'} doesn't build a {self.component.cls}: {first}"
            ) from error


def open_saved(folder: str | os.PathLike) -> SavedFolder:
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
    _check_inside(path, path / "config.json")
    try:
        component = find_model(path).component()
    except RecursionError as error:
        raise BrokenModelError(f"{path / 'config.json'} is nested too deeply") from error
    config = read_object(path, "config.json")
    record = read_record(path)
    qmap = _read_qmap(path)
    files = tuple((file, read_layout(file)) for file in _weight_files(path))
    _check_names(path, files)
    saved = SavedFolder(path, component, config, record, qmap, files)
    if record is not None:
        _check_record(saved, record)
    return saved


def layer_words(saved: SavedFolder) -> dict[str, str]:
    """Return the weights dtype of each layer that the files hold quantized.

    The files decide which layers those are; what kind they are follows from the types of their
    tensors, and for int4 and int2, which look alike, from what the folder declares.
    """
    declared = _declared_word(saved.config)
    words: dict[str, str] = {}
    for name, entry in saved.entries.items():
        if name.endswith(".weight._data._data") or name == "weight._data._data":
            path = name.removesuffix("weight._data._data").removesuffix(".")
            words[path] = _four_or_two(saved, path, declared)
        elif name.endswith(".weight._data") or name == "weight._data":
            path = name.removesuffix("weight._data").removesuffix(".")
            kinds = {torch.int8: "int8", torch.float8_e4m3fn: "float8"}
            if entry.spec.dtype not in kinds:
                raise BrokenModelError(
                    f"{saved.folder}: {name!r} has dtype {entry.spec.dtype}; quantized weights "
                    "are int8 or float8_e4m3fn"
                )
            words[path] = kinds[entry.spec.dtype]
    _check_declared(saved, words, declared)
    return words


def read_object(folder: Path, name: str) -> dict:
    """Return the JSON object in a folder's file.

    Raises
    ------
    BrokenModelError
        If it isn't one, names a key twice, is absurdly long, or lies outside the folder.
    """
    path = folder / name
    _check_inside(folder, path)
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenModelError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise BrokenModelError(f"{path} holds a JSON {type(values).__name__}, not an object")
    return values


def read_record(folder: Path) -> Record | None:
    """Return the checked `quantolab.json` of a folder, or None if there is none."""
    if not (folder / RECORD).exists() and not (folder / RECORD).is_symlink():
        return None
    values = read_object(folder, RECORD)
    if values.get("format") != FORMAT:
        raise BrokenModelError(
            f"{folder / RECORD} has format {values.get('format')!r}; this quantolab reads {FORMAT}"
        )
    try:
        return _record(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenModelError(
            f"{folder / RECORD} isn't what quantolab writes: {type(error).__name__}: {error}"
        ) from error


def _record(values: dict) -> Record:
    dtypes = {name: getattr(torch, name) for name in (*COMPUTE_DTYPES, "float64")}
    quantized = _words_by_name(values["quantized_layers"])
    if bad := set(quantized.values()) - set(WEIGHTS[1:]):
        raise ValueError(f"weights dtype {sorted(bad)[0]!r} is not known")
    if not isinstance(values["skipped_layers"], list):
        raise TypeError("skipped_layers is no list")
    digest = values["digest"]
    if digest["algorithm"] != DIGEST:
        raise ValueError(f"digest algorithm {digest['algorithm']!r}; known: {DIGEST}")
    plain = values["plain_diffusers"]
    return Record(
        recipe=Recipe.from_dict(values["recipe"]),
        dtype=dtypes[values["dtype"]],
        quantized=quantized,
        reasons=_words_by_name(values["reasons"]),
        cures=tuple((str(path), str(name)) for path, name in values["cures"]),
        tied=_words_by_name(values["tied"]),
        buffers={n: dtypes[d] for n, d in _words_by_name(values["buffers"]).items()},
        digests=_words_by_name(digest["files"]),
        plain_diffusers=(plain["loads"] is True, str(plain["reason"])),
        values=values,
    )


def _words_by_name(values: object) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise TypeError(f"an object of texts was expected, not {type(values).__name__}")
    return values


def _check_record(saved: SavedFolder, record: Record) -> None:
    where = saved.folder / RECORD
    cls = record.values.get("class")
    if cls != saved.component.cls:
        raise BrokenModelError(f"{where} is of a {cls}, config.json of a {saved.component.cls}")
    expected = {path.name for path, _ in saved.files} | {"config.json"}
    if expected != record.digests.keys():
        odd = sorted(expected ^ record.digests.keys())
        raise BrokenModelError(
            f"{where} and the folder's files disagree about {odd[0]!r}: files were added, taken "
            "away or renamed"
        )


def check_config_digest(saved: SavedFolder) -> None:
    """Raise `BrokenModelError` if ``config.json`` isn't the one that was saved."""
    found = digest_of((saved.folder / "config.json").read_bytes())
    recorded = saved.record.digests["config.json"]
    if found != recorded:
        raise BrokenModelError(
            f"{saved.folder / 'config.json'} has changed since it was saved: its digest "
            f"({DIGEST}) is {found}, and {recorded} was recorded (check=False reads it anyway)"
        )


def _weight_files(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob("*" + INDEX))
    if len(indexes) > 1:
        raise BrokenModelError(f"{folder} holds {len(indexes)} index files; one was expected")
    if indexes:
        weight_map = read_object(folder, indexes[0].name).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BrokenModelError(f"{indexes[0]} has no 'weight_map' of tensor and file names")
        names = list(dict.fromkeys(str(name) for name in weight_map.values()))
        for name in names:
            if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise BrokenModelError(
                    f"{indexes[0]} names {name!r}: allowed are .safetensors files in its own folder"
                )
        names.sort()
    else:
        found = sorted(p.name for p in folder.glob("*.safetensors"))
        plain = [n for n in found if n.count(".") == 1]  # variants have one dot more
        names = plain or found
        if not names:
            pickles = sorted(p.name for p in folder.glob("*.bin"))
            hint = f" (pickles such as {pickles[0]} are never loaded)" if pickles else ""
            raise BrokenModelError(f"{folder} holds no .safetensors file{hint}")
        if len(names) > 1:
            raise BrokenModelError(
                f"{folder} holds {len(names)} .safetensors files and no index that says which "
                "belong together"
            )
    for name in names:
        _check_inside(folder, folder / name)
    return [folder / name for name in names]


def _check_inside(folder: Path, path: Path) -> None:
    """Make sure that a file is an ordinary one, and that no link leads out of its folder.

    The Hub's cache is the exception: its folders are links to files in a ``blobs`` folder
    beside ``snapshots``.
    """
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise BrokenModelError(f"{path} can't be read: {error}") from error
    allowed = [home]
    parts = home.parts
    if "snapshots" in parts:
        allowed.append(Path(*parts[: parts.index("snapshots")], "blobs"))
    if not any(real.is_relative_to(place) for place in allowed):
        raise BrokenModelError(f"{path} is a link that leads out of its folder, to {real}")
    if not real.is_file():
        state = "isn't an ordinary file" if real.exists() else "isn't there"
        raise BrokenModelError(f"{path} {state}")


def _check_names(folder: Path, files: tuple) -> None:
    seen: dict[str, str] = {}
    for path, layout in files:
        for name in layout.names:
            if name in seen:
                raise BrokenModelError(f"{name!r} is in both {seen[name]} and {path.name}")
            seen[name] = path.name
    indexes = sorted(folder.glob("*" + INDEX))
    if not indexes:
        return
    said = read_object(folder, indexes[0].name)["weight_map"]
    for name in said.keys() | seen.keys():
        if said.get(name) != seen.get(name):
            raise BrokenModelError(
                f"{indexes[0]} says that {name!r} is in {said.get(name)!r}; it is in "
                f"{seen.get(name)!r}"
            )


def _check_counts(saved: SavedFolder) -> None:
    """Refuse a configuration with more layers than tensors: building it might never end."""
    limit = len(saved.entries)
    for key, value in saved.config.items():
        counts = value if isinstance(value, list) else [value]
        if "layers" in key or "blocks" in key or key in ("depth", "n_layer"):
            for count in counts:
                if type(count) is int and count > max(limit, 100):
                    raise BrokenModelError(
                        f"{saved.folder / 'config.json'} asks for {key}={count}, and the files "
                        f"hold {limit} tensors"
                    )


def _read_qmap(folder: Path) -> dict[str, str] | None:
    if not (folder / QMAP).exists() and not (folder / QMAP).is_symlink():
        return None
    words = {}
    for path, said in read_object(folder, QMAP).items():
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


def _declared_word(config: dict) -> str | None:
    said = config.get("quantization_config")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise BrokenModelError("config.json has a 'quantization_config' that is no object")
    method = said.get("quant_method")
    if method not in ("quanto", "quantolab"):
        raise UnsupportedError(
            f"config.json says the model is quantized with {method!r}; quantolab reads quanto"
        )
    # transformers calls it `weights`.
    word = said.get("weights_dtype", said.get("weights"))
    if word not in (*WEIGHTS[1:], "mixed"):
        raise BrokenModelError(
            f"config.json declares the weights dtype {word!r}; known: {', '.join(WEIGHTS[1:])}"
        )
    return None if word == "mixed" else word


def _four_or_two(saved: SavedFolder, path: str, declared: str | None) -> str:
    for words in (saved.record and saved.record.quantized, saved.qmap):
        if words and words.get(path) in ("int4", "int2"):
            return words[path]
    if declared in ("int4", "int2"):
        return declared
    raise BrokenModelError(
        f"{saved.folder}: layer {path!r} is quantized to int4 or int2, and nothing in the folder "
        "says which"
    )


def _check_declared(saved: SavedFolder, words: dict[str, str], declared: str | None) -> None:
    listed = saved.record.quantized if saved.record is not None else saved.qmap
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
