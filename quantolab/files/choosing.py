"""Which files hold a component's weights: one rule for everybody, the library's own.

The same rule chooses among the files of a folder and among those that a hub lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BrokenModelError
from .foreign import foreign
from .json_objects import check_inside, read_object

SUFFIX = ".safetensors"
SUFFIXES = (SUFFIX, ".sft")
"""How names of safetensors files end; the first is what is written."""

INDEX = ".safetensors.index.json"
"""How the name of a file ends that says which tensor lies in which shard."""

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""How each library begins the names of a model's weights files."""


_IS_INDEX = re.compile(r"\.safetensors\.index(?:\.[\w-]+)?\.json")
_SHARD = re.compile(r"-\d+-of-\d+")


@dataclass(frozen=True)
class Chosen:
    """The one file that says where a component's weights are: they themselves, or an index."""

    name: str
    variant: str | None = None
    """``fp16``, ...; None for the plain files."""

    @property
    def is_index(self) -> bool:
        """Whether it only says which tensor lies in which shard."""
        return _IS_INDEX.search(self.name) is not None


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a component's weights."""

    paths: tuple[Path, ...]
    index: Path | None = None
    """The file that says which tensor lies in which of them, if it was by it that they were
    chosen."""


def choose(
    names: Iterable[str], library: str, where: Path | str, variant: str | None = None
) -> Chosen:
    """Return which of a folder's files holds a component's weights, or their index.

    The library's own name counts, whatever else lies beside it: Diffusers looks for its index
    first, transformers for its one file. A variant that is asked for comes first, and where the
    folder has none of that name the plain files are taken, as Diffusers does. Where no variant is
    asked for and there are no plain files, the only variant is taken. Failing all of these, the
    only index or file.

    Parameters
    ----------
    names : iterable of str
        Names of all files in the folder.
    library : str
        ``"diffusers"`` or ``"transformers"``.
    where : Path or str
        The folder, for the text of an error.
    variant : str, optional
        Such as ``"fp16"``.

    Raises
    ------
    BrokenModelError
        If there are none, or nothing says which of several belong together.
    """
    names = sorted(names)
    for asked in dict.fromkeys((variant, None)):
        found = _own(names, library, asked)
        if found is not None:
            return found
    others = variants(names, library)
    if len(others) > 1:
        raise BrokenModelError(
            f"{where} holds the variants {', '.join(others)} and no plain files; say which with "
            "variant="
        )
    only = _own(names, library, others[0]) if others else None
    return only or _only_one(names, where)


def variants(names: Iterable[str], library: str) -> tuple[str, ...]:
    """Return the variants of which a folder has weights under the library's own names."""
    stem = re.escape(STEMS[library])
    form = re.compile(
        rf"{stem}\.(?:safetensors\.index\.(?P<index>[\w-]+)\.json|(?P<file>[\w-]+)\.safetensors)"
    )
    found = (form.fullmatch(name) for name in names)
    words = {match["index"] or match["file"] for match in found if match is not None}
    return tuple(sorted(word for word in words if not _SHARD.search(word)))


def weight_files(
    folder: Path, library: str, home: Path | None = None, variant: str | None = None
) -> WeightFiles:
    """Return the safetensors files that hold a component's weights, by the rule of `choose`.

    Parameters
    ----------
    folder : Path
        The component's folder.
    library : str
        ``"diffusers"`` or ``"transformers"``.
    home : Path, optional
        As for `read_object`.
    variant : str, optional
        Such as ``"fp16"``.

    Raises
    ------
    BrokenModelError
        If there are none, if nothing says which of several belong together, or if an index names
        a file that isn't there or lies elsewhere.
    """
    chosen = choose(file_names(folder), library, folder, variant)
    path = folder / chosen.name
    if chosen.is_index:
        return _shards(folder, path, home)
    if home is not None:
        check_inside(home, path)
    return WeightFiles((path,))


def file_names(folder: Path) -> list[str]:
    """Return the names of all that lies in a folder; none for a folder that isn't there."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _own(names: list[str], library: str, variant: str | None) -> Chosen | None:
    """Return what the library itself would open, of a variant or plain."""
    stem, word = STEMS[library], f".{variant}" if variant else ""
    own = [f"{stem}.safetensors.index{word}.json", *(f"{stem}{word}{end}" for end in SUFFIXES)]
    if library == "transformers":
        own = [*own[1:], own[0]]
    return next((Chosen(name, variant) for name in own if name in names), None)


def weight_map(index: Path, home: Path | None = None) -> dict[str, str]:
    """Return which tensor lies in which file, as an index says.

    Raises
    ------
    BrokenModelError
        If it doesn't, or names anything but safetensors files in its own folder.
    """
    found = read_object(index, home).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BrokenModelError(f"{index} has no 'weight_map' of tensor and file names")
    for name in found.values():
        plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not plain or not name.endswith(SUFFIXES):
            raise BrokenModelError(
                f"{index} names {name!r}: allowed are .safetensors files in its own folder"
            )
    return found


def _only_one(names: list[str], where: Path | str) -> Chosen:
    """Return the only index, or else the only file, plain names before variants'."""
    indexes = [name for name in names if name.endswith(INDEX)]
    if len(indexes) > 1:
        raise BrokenModelError(f"{where} holds {len(indexes)} index files; one was expected")
    if indexes:
        return Chosen(indexes[0])
    found = [name for name in names if name.endswith(SUFFIXES)]
    plain = [name for name in found if name.count(".") == 1] or found
    if not plain:
        if gguf := [name for name in names if name.endswith(".gguf")]:
            raise foreign(where, "GGUF", repr(gguf[0]))
        pickles = [name for name in names if name.endswith(".bin")]
        hint = f" (pickles such as {pickles[0]} are never loaded)" if pickles else ""
        raise BrokenModelError(f"{where} holds no .safetensors file{hint}")
    if len(plain) > 1:
        raise BrokenModelError(
            f"{where} holds {len(plain)} .safetensors files and no index that says which "
            "belong together"
        )
    return Chosen(plain[0])


def _shards(folder: Path, index: Path, home: Path | None) -> WeightFiles:
    names = sorted(set(weight_map(index, home).values()))
    for name in names:
        if home is not None:
            check_inside(home, folder / name)
        elif not (folder / name).is_file():
            raise BrokenModelError(f"{index} names {name!r}, which isn't in its folder")
    return WeightFiles(tuple(folder / name for name in names), index)
