"""A Hub model brought here: its index first, then what was asked for and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgumentError, BrokenModelError, ModelNotFoundError, nearest
from ..files.choosing import weight_map
from ..files.json_objects import read_object
from ..hub.names import HubName
from ..hub.repository import Repository, fetch, open_repository, read_header
from .needed import CONFIGS, Needed, of_component, of_pipeline, parts_of

INDEX = "model_index.json"


def bring_model(
    name: HubName,
    *,
    weights: bool | Iterable[str | None],
    variant: str | None,
    default_parts: Callable[[Path], Iterable[str]],
) -> tuple[Path, str, tuple[str, ...] | None]:
    """Return the folder of a Hub model in the cache, its commit, and which files it has there.

    The files are those of the hub's own list, by path inside the folder, fetched or not; None
    where the list isn't known.

    Parameters
    ----------
    name : HubName
        A repository, or a folder in it.
    weights : bool or iterable of str
        Whose weights are needed: all that the pipeline loads, none, or those of some components,
        among which None means the denoiser.
    variant : str, optional
        Of the weights.
    default_parts : callable
        Returns the denoiser of a folder whose configurations are there.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError, OutputError
        If there is no such model, or it can't be had.
    """
    repository = open_repository(name)
    base = _folder_in(repository)
    index = base + INDEX
    if index in repository.files or repository.has(index):
        fetch(repository, [index], quiet=True)
        _bring_pipeline(repository, base, weights, variant, default_parts)
    else:
        _bring_component(repository, base, weights, variant)
    listed = (path.removeprefix(base) for path in repository.files if path.startswith(base))
    return repository.folder / base, repository.commit, tuple(listed) if repository.whole else None


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, fetched or not."""

    repository: Repository
    path: str
    described: HubName | None
    """What describes it there: the folder it lies in, if that has a ``config.json``, or the
    repository's pipeline."""

    @property
    def place(self) -> Path:
        """Where it is in the cache once it is fetched."""
        return self.repository.folder / self.path

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.repository.files[self.path]

    def header(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return (dtype, shape) of each of its tensors; nothing else of it is fetched."""
        return read_header(self.repository, self.path)

    def bring(self) -> Path:
        """Return its place, where it is then."""
        fetch(self.repository, [self.path])
        return self.place


def find_file_on_hub(name: HubName) -> HubFile:
    """Return a file of a repository, which isn't fetched yet.

    Raises
    ------
    ModelNotFoundError
        If it isn't there, with near names of those that are.
    """
    repository = open_repository(name)
    name = repository.name
    if name.path not in repository.files and repository.whole:
        alike = [path for path in repository.files if Path(path).suffix == Path(name.path).suffix]
        there = f"; there are: {', '.join(alike)}" if 0 < len(alike) <= 8 else ""
        hint = nearest(name.path, alike) or there
        raise ModelNotFoundError(f"{name.repo} has no file {name.path!r}{hint}")
    beside = name.path.rpartition("/")[0]
    for folder in dict.fromkeys((beside, "")):
        base = f"{folder}/" if folder else ""
        if {base + INDEX, base + "config.json"} & repository.files.keys():
            return HubFile(repository, name.path, HubName(name.repo, repository.commit, folder))
    return HubFile(repository, name.path, None)


def _folder_in(repository: Repository) -> str:
    """Return the folder inside a repository that its name means, with a slash at its end."""
    name = repository.name
    path = name.path
    if path.rpartition("/")[2] in (INDEX, "config.json"):
        path = path.rpartition("/")[0]
    base = f"{path}/" if path else ""
    if path in repository.files:
        raise ArgumentError(
            f"{name} is one file of {name.repo}; a model's folder was expected "
            "(load_single_file reads one .safetensors file)"
        )
    if repository.whole and not any(file.startswith(base) for file in repository.files):
        folders = {file.rpartition("/")[0] for file in repository.files} - {""}
        raise ModelNotFoundError(f"{name.repo} has no folder {path!r}{nearest(path, folders)}")
    if base + INDEX not in repository.files and base + "config.json" not in repository.files:
        singles = [f for f in repository.files if f.startswith(base) and f.endswith(".safetensors")]
        if repository.whole:
            raise BrokenModelError(
                f"{name} holds no model in Diffusers layout: neither {INDEX} nor config.json"
                + (f" (load_single_file reads files such as {singles[0]})" if singles else "")
            )
    return base


def _bring_pipeline(
    repository: Repository,
    base: str,
    weights: bool | Iterable[str | None],
    variant: str | None,
    default_parts: Callable[[Path], Iterable[str]],
) -> None:
    index = read_object(repository.folder / base / INDEX)
    parts = parts_of(index)
    if not repository.whole:
        _refuse_partial(repository, base, parts, weights)

    def needed(wanted: Iterable[str] | None) -> Needed:
        return of_pipeline(
            index,
            repository.files,
            base,
            str(repository.name),
            wanted=wanted,
            all_parts=weights is True,
            variant=variant,
        )

    if weights is True:
        _bring(repository, needed(None))
        return
    if variant is not None:
        needed(parts)  # whether there is such a variant
    configs = (f"{base}{name}/{file}" for name in parts for file in CONFIGS)
    fetch(repository, [path for path in configs if path in repository.files], quiet=True)
    if weights is not False:
        wanted: list[str] = []
        for name in weights:
            wanted += [name] if name is not None else default_parts(repository.folder / base)
        _bring(repository, needed([name for name in wanted if name in parts]))


def _bring_component(
    repository: Repository, base: str, weights: bool | Iterable[str | None], variant: str | None
) -> None:
    config = base + "config.json"
    fetch(repository, [config], quiet=True)
    if weights is False and variant is None:
        return
    is_diffusers = "_class_name" in read_object(repository.folder / config)
    library = "diffusers" if is_diffusers else "transformers"
    needed = of_component(library, repository.files, base, str(repository.name), variant)
    if weights is not False:
        _bring(repository, needed)


def _bring(repository: Repository, needed: Needed) -> None:
    """Fetch configurations and indexes, which say which shards there are; then all the rest."""
    fetch(repository, needed.configs, quiet=True)
    paths = [*needed.configs, *needed.beside]
    for folder, chosen in needed.weights:
        if chosen.is_index:
            shards = weight_map(repository.folder / folder / chosen.name).values()
            paths += [folder + shard for shard in sorted(set(shards))]
        else:
            paths.append(folder + chosen.name)
    fetch(repository, paths)


def _refuse_partial(
    repository: Repository,
    base: str,
    parts: dict[str, tuple[str, str]],
    weights: bool | Iterable[str | None],
) -> None:
    """Say which parts the cache lacks, where nothing but the cache says what there is."""
    wanted = parts if weights in (True, False) else [n for n in weights if n is not None]
    there = {f.removeprefix(base).partition("/")[0] for f in repository.files if f.startswith(base)}
    lacking = [name for name in wanted if name in parts and name not in there]
    if lacking and weights is not False:
        raise ModelNotFoundError(
            f"{repository.name} isn't whole in the local cache and can't be fetched now; missing: "
            f"{', '.join(lacking)}"
        )
