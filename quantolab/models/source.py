"""Where a model lies and what it is made of, from its JSON files alone. Never imports torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..arguments import shown
from ..errors import (
    ArgumentError,
    BrokenModelError,
    ModelNotFoundError,
    nearest,
    one_of,
)
from ..files.choosing import choose, file_names, variants
from ..files.json_objects import read_object
from ..hub.names import HubName, is_address, read_hub_name
from ..hub.sentences import cached_names
from .known import KnownModel, find_known, known_folder, known_models
from .needed import one_variant
from .on_hub import bring_model

DEMO = "demo"
LARGEST_SIDE = 16384
"""Pixels; no model makes nearly as many along one side."""
# What pipelines of Diffusers call the parts that denoise, in the order in which the first is taken
# where one is asked for. Source: the arguments of their constructors, which a test goes over.
DENOISERS = (
    "transformer", "transformer_2", "unconditional_transformer",
    "unet", "image_unet", "text_unet",
    "prior", "prior_prior", "decoder", "super_res_first", "super_res_last",
)  # fmt: skip

# Pipelines that pack 2x2 latents into one token outside of what `patch_size` of the denoiser says.
_PACKED = ("Flux", "Chroma", "QwenImage", "ZImage", "Krea2")

LIBRARIES = ("diffusers", "transformers")
_NEVER_QUANTIZED = re.compile(
    r"vae|vqgan|movq|safety_checker|scheduler|tokenizer|feature_extractor|watermark"
)
_NEVER_QUANTIZED_CLASSES = re.compile(r"^Autoencoder|^AsymmetricAutoencoder|VQModel$")


@dataclass(frozen=True)
class Component:
    """One part of a pipeline that has weights."""

    name: str
    library: str
    """``diffusers`` or ``transformers``."""
    cls: str
    """Class name inside that library."""
    folder: Path
    variant: str | None = None
    """Which variant of its weights is read (``fp16``, ...); None for the plain files."""
    note: str | None = None
    """What is said where that isn't what was asked for."""


@dataclass(frozen=True)
class Source:
    """A model on disk: a pipeline's folder, or the folder of one component."""

    model: str
    """As asked for."""
    folder: Path
    pipeline: str | None
    """Class name of the pipeline; None for a component's own folder."""
    components: tuple[Component, ...]
    """Those that can be quantized."""
    revision: str | None = None
    """Commit of a Hub model; None for folders."""
    hub: HubName | None = None
    """What was asked for on the Hub; None for folders."""
    asked_variant: str | None = None
    """The variant that was asked for; None leaves it to what is there."""

    @property
    def variant(self) -> str | None:
        """The variant that Diffusers loads the pipeline in; None for plain files.

        Raises
        ------
        BrokenModelError
            If its parts are there in several.
        """
        if self.asked_variant is not None or self.pipeline is None:
            return self.asked_variant or self.components[0].variant
        return one_variant(_variants_of_parts(self.folder), self.model)

    @property
    def variant_sentence(self) -> str | None:
        """Which variant of the weights is read, as a sentence; None for plain files."""
        taken = {part.variant for part in self.components}
        notes = {part.note for part in self.components}
        if taken == {None} and notes == {None}:
            return None
        if len(taken) == len(notes) == 1:
            alone = "alone is there, and taken" if notes != {None} else "is read, as asked for"
            return f"Of the weights the variant {taken.pop()!r} {alone}."
        words = {p: f"variant {p.variant!r}" if p.variant else "plain" for p in self.components}
        return f"Weights files: {', '.join(f'{p.name} {word}' for p, word in words.items())}."

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Names of the components that denoise: two in Wan 2.2, none where none is known.

        The one component of a folder without a pipeline stands for them, whatever it is.
        """
        names = [c.name for c in self.components]
        if self.pipeline is None:
            return (names[0],)
        return tuple(name for name in DENOISERS if name in names)

    @property
    def default_components(self) -> tuple[str, ...]:
        """Names of the components that are quantized unless others are asked for.

        Raises
        ------
        ArgumentError
            If none of the pipeline's parts is known to denoise, with their names: none is guessed.
        """
        if not self.denoisers:
            raise ArgumentError(
                f"none of the parts of {self.model!r} is known to denoise, so that one must be "
                f"asked for as its component: {', '.join(c.name for c in self.components)}"
            )
        return self.denoisers

    @property
    def denoiser(self) -> str:
        """Name of the first of `default_components`."""
        return self.default_components[0]

    def component(self, name: str | None = None) -> Component:
        """Return a component by its name; None is the denoiser.

        Raises
        ------
        ArgumentError
            If the model has no such component, with those it has.
        """
        names = [c.name for c in self.components]
        name = one_of(f"component of {self.model!r}", name or self.denoiser, names)
        return self.components[names.index(name)]

    def config(self, name: str) -> dict:
        """Return the configuration of any part of the pipeline, quantizable or not.

        Empty if there is no such part: a denoiser by itself has no VAE, and isn't one.
        """
        alone = None if self.pipeline else self.components[0]
        if alone is not None and alone.name != name:
            return {}
        folder = self.folder / name if alone is None else self.folder
        for file in ("config.json", "scheduler_config.json"):
            if (folder / file).is_file():
                return read_object(folder / file)
        return {}


def find_model(
    model: str | os.PathLike | None = None,
    *,
    weights: bool | Iterable[str | None] = True,
    variant: str | None = None,
    revision: str | None = None,
) -> Source:
    """Return where a model lies and what it is made of.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (also what None means), a folder in Diffusers layout, or a model of the Hub:
        ``OWNER/NAME``, ``OWNER/NAME@REVISION``, ``OWNER/NAME/FOLDER`` or the address of its page
        or of a folder in it. What of it isn't in the local cache is fetched, if the environment
        allows it.
    weights : bool or iterable of str
        Which weights of a Hub model are needed: all that its pipeline loads, none, or those of
        some components, among which None means the denoiser. False fetches configurations only,
        and nothing at all for a well-known model, by its name (``"FLUX.1-dev"``) or its Hub id:
        its configuration is built in.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.

    Raises
    ------
    ArgumentError
        If there is no such variant, or a folder is given a revision.
    ModelNotFoundError
        If there is no such folder, or the Hub model can't be had.
    BrokenModelError
        If a folder is no model in Diffusers layout.
    """
    name = DEMO if model is None else os.fspath(model)
    if not name.strip():
        raise ArgumentError(
            "model is empty; a folder in Diffusers layout, a Hub id or 'demo' was expected"
        )
    if name.strip() == DEMO:
        from ..demo import demo_model

        return _local(DEMO, demo_model(), variant, revision)
    folder = Path() if is_address(name) else _as_path(name)
    if not is_address(name) and folder.is_dir():
        return _local(name, folder, variant, revision)
    if not is_address(name) and folder.exists():
        raise BrokenModelError(
            f"model {name!r} is a file; a folder in Diffusers layout, a Hub id or 'demo' was "
            "expected"
        )
    known = find_known(name.strip())
    if known is not None and weights is False and variant is None and revision is None:
        return _known_source(name, known)
    asked = None if name.startswith((".", "/", "~")) else read_hub_name(name, revision)
    if asked is not None:
        return _find_on_hub(name, asked, weights, variant)
    if known is not None:
        hint = f"; did you mean {known.hub_ids[0]!r}?"
    else:
        words = () if weights else (model.name for model in known_models())
        hint = nearest(name, (DEMO, *words, *_folders_beside(folder)))
    raise ModelNotFoundError(
        f"model {name!r} is no folder here, no Hub id (owner/name) and not 'demo'{hint}"
    )


def _as_path(name: str) -> Path:
    """Return a name as the path that it may be.

    Raises
    ------
    ModelNotFoundError
        If no file can have this name: it is too long, say, or holds what names can't.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelNotFoundError(f"model {name!r} can't be read: {error}") from error
    return path


def read_source(
    model: str,
    folder: Path,
    revision: str | None = None,
    *,
    variant: str | None = None,
    hub: HubName | None = None,
    files: Iterable[str] | None = None,
) -> Source:
    """Return what a folder holds: a pipeline (``model_index.json``) or one component.

    Parameters
    ----------
    model, folder, revision, variant, hub
        As `Source` says.
    files : iterable of str, optional
        Paths of the files that belong in the folder, there already or not; by default those that
        are there.

    Raises
    ------
    BrokenModelError
        If it holds neither, or its JSON files can't be read.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        part = _component_folder(folder, variant, _names_in("", files))
        return Source(model, folder, None, (part,), revision, hub, variant)
    entries = read_object(index)
    pipeline = entries.get("_class_name")
    if not isinstance(pipeline, str):
        raise BrokenModelError(f"{index} names no pipeline class (_class_name)")
    parts = tuple(
        _component(name, entry[0], entry[1], folder / name, variant, _names_in(name, files))
        for name, entry in entries.items()
        if _is_quantizable(name, entry) and _is_there(folder / name / "config.json")
    )
    if not parts:
        raise BrokenModelError(f"{index} lists no component with weights that could be quantized")
    return Source(model, folder, pipeline, parts, revision, hub, variant)


def default_size(source: Source) -> tuple[int, int] | None:
    """Return the (width, height) that a pipeline was made for, or None if its files don't say.

    A denoiser with ``sample_size`` counts in latents, as SD3's and PixArt's do; otherwise the
    VAE's ``sample_size`` says it in pixels, as FLUX's does.
    """
    if source.component(source.denoiser).cls == "UNet1DModel":
        return None  # its samples are of sound
    name, key = source.denoiser, "sample_size"
    sample = source.config(name).get(key)
    if sample is not None:
        height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample,) * 2
        scale = vae_scale(source)
        most = LARGEST_SIDE // scale
        width, height = (_whole(source, name, key, n, most) for n in (width, height))
        return (width * scale, height * scale)
    sample = source.config("vae").get(key)
    if isinstance(sample, int):
        return (_whole(source, "vae", key, sample, LARGEST_SIDE),) * 2
    return None


def vae_scale(source: Source) -> int:
    """Return pixels a latent along one side: how far the VAE scales down."""
    vae = source.config("vae")
    for key in ("spatial_compression_ratio", "scale_factor_spatial"):
        if vae.get(key):
            return _whole(source, "vae", key, vae[key], _MOST_SCALE)
    if "spatio_temporal_scaling" in vae:  # LTX-Video's: not every stage halves, and it has patches
        stages = _stages(source, "spatio_temporal_scaling")
        patch = _whole(source, "vae", "patch_size", vae.get("patch_size", 1), _MOST_SCALE)
        return 2 ** sum(map(bool, stages)) * patch
    # Sana's deep-compression VAE names its encoder's stages apart.
    for key in ("block_out_channels", "encoder_block_out_channels"):
        if vae.get(key):
            return 2 ** (len(_stages(source, key)) - 1)
    return 8


def size_step(source: Source) -> int:
    """Return the pixels that width and height must be multiples of."""
    patch = source.config(source.denoiser).get("patch_size", 1)
    patch = patch[-1] if isinstance(patch, list) and patch else patch
    packed = (source.pipeline or "").startswith(_PACKED)
    patch = _whole(source, source.denoiser, "patch_size", patch or 1, _MOST_SCALE)
    return vae_scale(source) * (2 if packed else patch)


_MOST_SCALE, _MOST_STAGES = 1024, 11


def _whole(source: Source, name: str, key: str, value: object, most: int) -> int:
    """Return a number that a part's configuration gives, within what any model has."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 1 <= value <= most and value == int(value):
        return int(value)
    raise _odd(source, name, key, value, f"a whole number from 1 to {most}")


def _stages(source: Source, key: str) -> list:
    """Return what a VAE's configuration lists of each of its stages."""
    value = source.config("vae").get(key)
    if isinstance(value, list) and 0 < len(value) <= _MOST_STAGES:
        return value
    raise _odd(source, "vae", key, value, f"a list of 1 to {_MOST_STAGES}")


def _odd(source: Source, name: str, key: str, value: object, wanted: str) -> BrokenModelError:
    said = repr(value)
    said = f"{said[:60]}…" if len(said) > 60 else said
    return BrokenModelError(
        f"{source.model!r} can't say which sizes it makes: {name} gives {key} as {said}; {wanted} "
        "was expected"
    )


def check_size(source: Source, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) if the model can make it.

    Raises
    ------
    ArgumentError
        With the nearest size that it can make. (FLUX would silently make another one.)
    """
    step = size_step(source)
    if (
        isinstance(size, (tuple, list))
        and len(size) == 2
        and all(isinstance(n, int) and 0 < n <= LARGEST_SIDE and n % step == 0 for n in size)
    ):
        return (size[0], size[1])
    message = f"size {_as_text(size)} can't be made by {source.model!r}: width and height must be "
    message += f"multiples of {step}"
    if isinstance(size, (tuple, list)) and all(isinstance(n, int) for n in size):
        if max(size, default=0) > LARGEST_SIDE:
            message += f" up to {LARGEST_SIDE}"
        close = [max(step, round(min(n, LARGEST_SIDE) / step) * step) for n in size]
        message += f"; did you mean {_as_text(close)}?"
    raise ArgumentError(message)


def _as_text(size: object) -> str:
    return "x".join(map(shown, size)) if isinstance(size, (tuple, list)) else repr(size)


def _is_quantizable(name: str, entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and entry[0] in LIBRARIES
        and isinstance(entry[1], str)
        and not name.startswith("_")
        and Path(name).name == name != ".."  # a folder inside the model's own
        and not _NEVER_QUANTIZED.search(name)
        and not _NEVER_QUANTIZED_CLASSES.search(entry[1])
    )


def _is_there(config: Path) -> bool:
    """Return whether a part has a configuration; one that can't be read is told, not left out."""
    if os.path.lexists(config) and not config.is_file():
        raise BrokenModelError(f"{config} isn't an ordinary file, or a link that leads to none")
    return config.is_file()


def _names_in(folder: str, files: Iterable[str] | None) -> list[str] | None:
    """Return the names of the files right inside a folder of those that are listed."""
    if files is None:
        return None
    parts = (path.rpartition("/") for path in files)
    return [name for place, _, name in parts if place == folder]


def _component_folder(folder: Path, variant: str | None, names: list[str] | None) -> Component:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise BrokenModelError(
            f"folder {str(folder)!r} is no model in Diffusers layout: it has neither "
            "model_index.json nor config.json"
        )
    config = read_object(config_file)
    architectures = config.get("architectures")
    if isinstance(config.get("_class_name"), str):
        library, cls = "diffusers", config["_class_name"]
        name = "unet" if "UNet" in cls else "transformer"
    elif isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        library, cls, name = "transformers", architectures[0], "text_encoder"
    else:
        raise BrokenModelError(f"{config_file} names no model class")
    return _component(name, library, cls, folder, variant, names)


def _component(
    name: str,
    library: str,
    cls: str,
    folder: Path,
    variant: str | None,
    names: list[str] | None = None,
) -> Component:
    try:
        beside = file_names(folder) if names is None else names
        found = choose(beside, library, folder, variant).variant
    except BrokenModelError:
        return Component(name, library, cls, folder)  # said when its weights are read
    note = None
    if found != variant:
        note = (
            f"no variant {variant!r} of it is there: its plain weights are taken"
            if found is None
            else f"its weights are there as variant {found!r} alone, which is taken"
        )
    return Component(name, library, cls, folder, found, note)


def _variants_of_parts(folder: Path) -> dict[str, str | None]:
    """Return the variant of each part of a pipeline, those that are never quantized too."""
    found = {}
    for part in sorted(folder.iterdir()):
        names = file_names(part) if part.is_dir() else []
        for library in LIBRARIES:
            if "config.json" in names and variants(names, library):
                found[part.name] = choose(names, library, part).variant
    return found


def _local(name: str, folder: Path, variant: str | None, revision: str | None) -> Source:
    if revision is not None:
        raise ArgumentError(
            f"revision {revision!r} is given for {name!r}, which is a folder here; models of the "
            "Hub have revisions"
        )
    source = read_source(name, folder, variant=variant)
    if variant is not None and all(part.variant != variant for part in source.components):
        found = {
            word
            for part in source.components
            for word in variants(file_names(part.folder), part.library)
        }
        hint = f"there are: {', '.join(sorted(found))}" if found else "it has plain files only"
        raise ArgumentError(f"model {name!r} has no variant {variant!r}; {hint}")
    return source


def _folders_beside(folder: Path) -> list[str]:
    try:
        beside = [p for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return []
    return [str(folder.parent / p.name) if folder.parent != Path() else p.name for p in beside]


def _known_source(name: str, known: KnownModel) -> Source:
    """Return a Hub model's own configuration if it was downloaded, else the built-in one."""
    asked = read_hub_name(name)
    if asked is not None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(
                    asked.repo,
                    local_files_only=True,
                    allow_patterns=["model_index.json", "*/config.json"],
                )
            )
            source = read_source(name, folder, folder.name, hub=asked)
            if len(source.components) == len(read_source(name, known_folder(known)).components):
                return source
        except (LocalEntryNotFoundError, BrokenModelError, OSError):
            pass  # nothing or only a part of it was downloaded
    return read_source(name, known_folder(known), hub=asked or HubName(known.hub_ids[0]))


def _find_on_hub(
    name: str, asked: HubName, weights: bool | Iterable[str | None], variant: str | None
) -> Source:
    def denoiser(folder: Path) -> tuple[str, ...]:
        return (read_source(str(asked), folder).denoiser,)

    try:
        folder, commit, files = bring_model(
            asked,
            weights=weights if isinstance(weights, bool) else tuple(weights),
            variant=variant,
            default_parts=denoiser,
        )
    except ModelNotFoundError as error:
        if is_address(name):
            raise
        raise ModelNotFoundError(  # a misspelt folder looks like a Hub id
            f"{name!r} is no folder here, and as a Hub model: {error}{_near(asked)}"
        ) from None
    return read_source(str(asked), folder, commit, variant=variant, hub=asked, files=files)


def _near(asked: HubName) -> str:
    """Return folders, cached and known models of a like name; nothing for one that is cached."""
    known = [hub_id for model in known_models() for hub_id in model.hub_ids]
    names = [*_folders_beside(Path(str(asked))), *cached_names(), *known]
    return "" if asked.repo in names else nearest(str(asked), names)
