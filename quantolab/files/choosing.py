"""Which files hold a component's weights: one rule for everybody, the library's own."""

from __future__ import annotations

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


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a component's weights."""

    paths: tuple[Path, ...]
    index: Path | None = None
    """The file that says which tensor lies in which of them, if it was by it that they were
    chosen."""


def weight_files(folder: Path, library: str, home: Path | None = None) -> WeightFiles:
    """Return the safetensors files that hold a component's weights, as its library chooses them.

    The library's own name counts, whatever else lies beside it: Diffusers looks for its index
    first, transformers for its one file. Where neither is there, the only index or file is
    taken; variants (``model.fp16.safetensors``) only if there is nothing else.

    Parameters
    ----------
    folder : Path
        The component's folder.
    library : str
        ``"diffusers"`` or ``"transformers"``.
    home : Path, optional
        As for `read_object`.

    Raises
    ------
    BrokenModelError
        If there are none, if nothing says which of several belong together, or if an index names
        a file that isn't there or lies elsewhere.
    """
    stem = STEMS[library]
    own = [folder / (stem + ending) for ending in (INDEX, *SUFFIXES)]
    if library == "transformers":
        own = [*own[1:], own[0]]
    found = next((path for path in own if path.exists() or path.is_symlink()), None)
    chosen = found or _only_one(folder)
    if chosen.name.endswith(INDEX):
        return _shards(folder, chosen, home)
    if home is not None:
        check_inside(home, chosen)
    return WeightFiles((chosen,))


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


def _only_one(folder: Path) -> Path:
    """Return the only index, or else the only file, plain names before variants'."""
    indexes = sorted(folder.glob("*" + INDEX))
    if len(indexes) > 1:
        raise BrokenModelError(f"{folder} holds {len(indexes)} index files; one was expected")
    if indexes:
        return indexes[0]
    found = sorted(path for ending in SUFFIXES for path in folder.glob("*" + ending))
    names = [path for path in found if path.name.count(".") == 1] or found
    if not names:
        if gguf := sorted(p.name for p in folder.glob("*.gguf")):
            raise foreign(folder, "GGUF", repr(gguf[0]))
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" (pickles such as {pickles[0]} are never loaded)" if pickles else ""
        raise BrokenModelError(f"{folder} holds no .safetensors file{hint}")
    if len(names) > 1:
        raise BrokenModelError(
            f"{folder} holds {len(names)} .safetensors files and no index that says which "
            "belong together"
        )
    return names[0]


def _shards(folder: Path, index: Path, home: Path | None) -> WeightFiles:
    names = sorted(set(weight_map(index, home).values()))
    for name in names:
        if home is not None:
            check_inside(home, folder / name)
        elif not (folder / name).is_file():
            raise BrokenModelError(f"{index} names {name!r}, which isn't in its folder")
    return WeightFiles(tuple(folder / name for name in names), index)
