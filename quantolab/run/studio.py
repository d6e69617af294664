"""Prompts, seeds, steps and size become pictures: the part of a trial that knows pipelines."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..backends import kernels
from ..devices import give_back, synchronize
from ..errors import ArgumentError, UnsupportedError, is_out_of_memory
from ..files.digests import file_digest
from ..loading.component import load_component
from ..loading.lora import add_lora
from ..loading.pipelines import assemble
from ..loading.report import WAIT
from ..measure.frames import sheet_of
from ..measure.held_bytes import weight_bytes
from ..measure.quality import check_pixels
from ..models.resolving import reference_share, shares_in
from ..models.skeleton import quiet_libraries
from ..models.source import Source
from ..processes.jobs import Desk
from ..records import AHEAD, IN_TRIAL, WhenEncoded, Workload
from ..saved.pieces import file_bytes
from .encoding import (
    EncodedText,
    PromptReplay,
    call_arguments,
    encode_ahead,
    encode_with,
    joined,
    load_encoded,
)
from .jobs import TrialJob
from .offloading import decode_in_tiles, offload
from .ways import RESIDENT

if TYPE_CHECKING:
    from PIL import Image

_EVENT_SECONDS = 0.2  # at most so many progress events a second: each costs a system call


@dataclass
class Prepared:
    """A pipeline that is ready to make pictures, and what it took to get there."""

    pipe: Any
    denoiser: torch.nn.Module
    encoded: dict[str, EncodedText] | None
    """By prompt; None if the pipeline encodes the text itself."""
    weight_bytes: int
    file_bytes: int | None
    """None where what is held can't be saved."""
    load_seconds: float
    notes: tuple[str, ...]
    when_encoded: WhenEncoded
    kernel: str | None = None
    """What multiplies by the quantized weights, in words; None where they come and go."""


@dataclass
class _Loaded:
    """What has been loaded for a trial so far, and what is to be said of it."""

    notes: list[str] = field(default_factory=list)
    weight_bytes: int = 0
    file_bytes: int | None = 0
    seconds: float = 0.0
    kernels: set[str] = field(default_factory=set)

    def load(
        self, asked: TrialJob, names: Iterable[str], device: str
    ) -> dict[str, torch.nn.Module]:
        """Load and quantize some components."""
        parts: dict[str, torch.nn.Module] = {}
        shares = shares_in(asked.recipe, asked.source)
        started = time.perf_counter()
        for name in names:
            own = shares.get(name, reference_share(name))
            parts[name], report = load_component(
                asked.source.component(name),
                own,
                dtype=asked.workload.dtype,
                device=device,
                strict_skip=False,
            )
            self.notes += [f"{name}: {note}" for note in report.notes() if WAIT not in note]
        synchronize(device)
        self.seconds += time.perf_counter() - started
        self.weight_bytes += sum(weight_bytes(module) for module in parts.values())
        more = _file_bytes(parts.values())
        self.file_bytes = None if None in (self.file_bytes, more) else self.file_bytes + more  # type: ignore[operator]
        if asked.way.offload == RESIDENT:  # else they compute elsewhere than they lie now
            self.kernels |= {kernel for module in parts.values() if (kernel := kernels(module))}
        return parts


def prepare(asked: TrialJob, *, encoders_stay: bool = False) -> Prepared:
    """Load and quantize the components that are counted, and build the pipeline around them.

    Text encoders among them encode the prompts and are gone before the denoiser comes, where the
    pipeline's prompts can be encoded ahead, unless they are to stay.
    """
    source, device = asked.source, asked.workload.device
    home = device if asked.way.offload == RESIDENT else "cpu"
    loaded, encoded, names = _Loaded(), None, asked.components
    encoders = tuple(name for name in names if name.startswith("text_encoder"))
    if encoders and not encoders_stay and _encoders_leave(asked):
        encoded, first = _encoded_first(asked, encoders)
        if encoded is not None:
            loaded, names = first, tuple(name for name in names if name not in encoders)
    elif not encoders and asked.encoded is not None:
        encoded = load_encoded(asked.encoded, device)
    parts: dict[str, torch.nn.Module | None] = {**loaded.load(asked, names, home)}
    pipe = build_pipeline(
        source, parts, dtype=asked.workload.dtype, device=home, encoders=encoded is None
    )
    if asked.lora is not None:
        loaded.notes += _with_lora(pipe, asked.lora, asked.workload)
        loaded.weight_bytes = sum(weight_bytes(part) for part in parts.values() if part is not None)
    if asked.way.tiled:
        loaded.notes += decode_in_tiles(pipe)
    ahead = asked.way.ahead and not asked.compiled  # compiled, it is unproven
    loaded.notes += offload(pipe, source.denoisers, asked.way.offload, device, ahead=ahead)
    if asked.compiled:
        for name in source.default_components:  # loaded by us or with the pipeline
            getattr(pipe, name).compile()
    if encoded is None:
        encoded = encode_with(pipe, asked.workload.prompts, asked.workload)
    return Prepared(
        pipe,
        getattr(pipe, source.denoiser),
        encoded,
        loaded.weight_bytes,
        loaded.file_bytes,
        loaded.seconds,
        tuple(loaded.notes),
        IN_TRIAL if encoders or asked.encoded is None else AHEAD,
        ", ".join(sorted(loaded.kernels)) or None,
    )


def _encoders_leave(asked: TrialJob) -> bool:
    """Return whether text encoders are needed no longer than until prompts are encoded.

    Whole models and layers that are offloaded come and go by themselves; in groups only denoisers
    do. A LoRA may change text encoders, and activations are calibrated by whole pictures.
    """
    stay = asked.way.offload in (RESIDENT, "group")
    return stay and asked.lora is None and asked.recipe.activations is None


def _encoded_first(
    asked: TrialJob, encoders: tuple[str, ...]
) -> tuple[dict[str, EncodedText] | None, _Loaded]:
    """Return the prompts as quantized text encoders encode them, which are gone afterwards.

    Where a device doesn't hold them, the processor encodes. None where the pipeline can't do
    without them.
    """
    device = asked.workload.device
    try:
        return _encoded_on(device, asked, encoders)
    except Exception as error:
        if device == "cpu" or not is_out_of_memory(error):
            raise
    give_back(device)
    encoded, loaded = _encoded_on("cpu", asked, encoders)
    loaded.notes.append(f"the processor encoded: {device} doesn't hold the text encoders")
    return encoded, loaded


def _encoded_on(
    place: str, asked: TrialJob, encoders: tuple[str, ...]
) -> tuple[dict[str, EncodedText] | None, _Loaded]:
    loaded = _Loaded()
    source, workload = asked.source, dataclasses.replace(asked.workload, device=place)
    encoded = encode_ahead(
        source, workload, device=place, encoders=loaded.load(asked, encoders, place)
    )
    give_back(place)
    if encoded is None:
        return None, loaded
    return {p: text.on(asked.workload.device) for p, text in encoded.items()}, loaded


def _with_lora(pipe: Any, path: Path, workload: Workload) -> list[str]:
    """Load the workload's LoRA from a file that still holds what was asked for."""
    lora = workload.lora
    if lora is None or file_digest(path) != lora.digest:
        raise ArgumentError(f"the LoRA {str(path)!r} was changed while the run went on")
    return add_lora(pipe, path, lora.weight)


def _file_bytes(parts: Iterable[torch.nn.Module]) -> int | None:
    try:
        return sum(file_bytes(module) for module in parts)
    except UnsupportedError:
        return None


_OTHER_INPUTS = {"image", "images", "video", "control_image", "mask_image", "audio"}
_FRAMES = {"num_frames", "video_length", "frames"}


def check_pipeline(name: str, frames: int | None = None) -> None:
    """Make sure, before anything is loaded, that a pipeline makes what is asked from text alone.

    Parameters
    ----------
    name : str
        Its class.
    frames : int, optional
        Of each video; None for pictures.

    Raises
    ------
    UnsupportedError
        If it makes something else than pictures or videos, or needs more.
    ArgumentError
        If frames are asked of what makes pictures, or not asked of what makes videos.
    """
    import diffusers

    cls = getattr(diffusers, name, None)
    if cls is None:
        return  # whoever loads it says that there is none
    accepted = list(inspect.signature(cls.__call__).parameters.values())[1:]
    names = {parameter.name for parameter in accepted}
    needed = {p.name for p in accepted if p.default is p.empty} | {accepted[0].name}
    if "prompt" in names and not names & {*_OTHER_INPUTS, *_FRAMES} and not _audio_in(names):
        _check_no_frames(name, frames)
        return  # as nearly always, and Diffusers' own lists take a second to be imported

    from diffusers.pipelines import auto_pipeline

    if cls in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        _check_no_frames(name, frames)
        return
    from_pictures = (
        *auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values(),
        *auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING.values(),
    )
    compared = "compared are pictures and videos made from text"
    if _audio_in(names):
        raise UnsupportedError(f"{name} makes sound; {compared}")
    if cls in from_pictures or needed & _OTHER_INPUTS:
        raise UnsupportedError(f"{name} needs a picture to begin with; {compared}")
    if "prompt" not in names:
        raise UnsupportedError(f"{name} takes no prompt; {compared}")
    if not names & _FRAMES:
        _check_no_frames(name, frames)
    elif "num_frames" not in names:
        raise UnsupportedError(f"{name} makes videos in a way of its own: it takes no num_frames")
    elif frames is None:
        own = inspect.signature(cls.__call__).parameters["num_frames"].default
        said = f"; its own number is {own}" if isinstance(own, int) else ""
        raise ArgumentError(f"{name} makes videos: say how many frames each has (frames){said}")


def _check_no_frames(name: str, frames: int | None) -> None:
    if frames is not None:
        raise ArgumentError(f"{name} makes pictures, which have no frames; {frames} were asked for")


def _audio_in(names: set[str]) -> bool:
    return any(name.startswith("audio") and name != "audio" for name in names)


def build_pipeline(
    source: Source,
    parts: dict[str, torch.nn.Module | None],
    *,
    dtype: str,
    device: str,
    encoders: bool,
) -> Any:
    """Return a model's pipeline around components that are loaded, without a progress bar.

    Parameters as for `assemble`.
    """
    pipe = assemble(
        source.folder,
        source.pipeline,
        parts,
        dtype=dtype,
        device=device,
        encoders=encoders,
        variant=source.variant,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Studio:
    """Makes pictures one at a time, all in the same way, and says how long each took."""

    def __init__(self, prepared: Prepared, workload: Workload, desk: Desk) -> None:
        self._pipe = prepared.pipe
        self._encoded = prepared.encoded
        self._replay = None if prepared.encoded is None else PromptReplay(prepared.pipe)
        self._device = workload.device
        self._desk = desk
        self._told = 0.0
        self._workload = workload
        self._arguments = call_arguments(self._pipe, workload)
        if "callback_on_step_end" in inspect.signature(self._pipe.__call__).parameters:
            self._arguments["callback_on_step_end"] = self._on_step

    @property
    def tells_steps(self) -> bool:
        """Whether the pipeline calls back after each step."""
        return "callback_on_step_end" in self._arguments

    def make(self, prompt: str, seed: int, *, counted: bool = True) -> tuple[Image.Image, float]:
        """Return one picture and the seconds it took, from encoded prompt to pixels.

        Told as one of those that the run makes, unless it isn't `counted`.

        Raises
        ------
        BadPictureError
            If it is black, constant or not a number.
        """
        from PIL import Image

        synchronize(self._device)
        started = time.perf_counter()
        pixels = self.pixels(prompt, seed)
        synchronize(self._device)
        seconds = time.perf_counter() - started
        check_pixels(pixels)
        if counted:
            self._desk.picture()
        levels = (pixels * 255).round().astype("uint8")
        if self._workload.frames is None:
            return Image.fromarray(levels), seconds
        frames = levels.reshape(self._workload.frames, -1, *levels.shape[1:])
        return sheet_of(frames), seconds

    def pixels(self, prompt: str, seed: int) -> np.ndarray:
        """Return one picture's values from 0 to 1, whatever they are, rows by columns by colours.

        Of a video the frames are one below the other.

        Raises
        ------
        UnsupportedError
            If the pipeline makes something else.
        """
        return self._made([(prompt, seed)])[0]

    @property
    def makes_several(self) -> bool:
        """Whether several pictures can be made in one go: their prompts are encoded alike."""
        if self._encoded is None or self._workload.frames is not None:
            return False
        return joined(list(self._encoded.values())) is not None

    def several(self, pairs: Sequence[tuple[str, int]]) -> list[np.ndarray]:
        """Return the values of several pictures that are made in one go."""
        return list(self._made(pairs))

    def _made(self, pairs: Sequence[tuple[str, int]]) -> np.ndarray:
        # Noise from the CPU's generator is the same on every device.
        noise = [torch.Generator("cpu").manual_seed(seed) for _, seed in pairs]
        prompts = [prompt for prompt, _ in pairs]
        if self._replay is not None and self._encoded is not None:
            text = joined([self._encoded[prompt] for prompt in prompts])
            assert text is not None, "asked for by `makes_several`"
            self._replay.says(text)
        one = len(pairs) == 1
        with torch.no_grad(), quiet_libraries():
            made = self._pipe(
                prompt=prompts[0] if one else prompts,
                generator=noise[0] if one else noise,
                **self._arguments,
            )
        if self._workload.frames is not None and hasattr(made, "frames"):
            return self._one_below_the_other(np.asarray(made.frames))
        if not hasattr(made, "images"):
            raise UnsupportedError(
                f"{type(self._pipe).__name__} makes no pictures but {type(made).__name__}"
            )
        return made.images

    def _one_below_the_other(self, videos: np.ndarray) -> np.ndarray:
        """Return videos, (videos, frames, height, width, 3), as pictures of all their frames."""
        name, asked = type(self._pipe).__name__, self._workload.frames
        if videos.ndim != 5:
            raise UnsupportedError(f"{name} returns videos of shape {videos.shape}")
        if videos.shape[1] != asked:
            raise UnsupportedError(
                f"{name} makes {videos.shape[1]} frames where {asked} were asked for: ask for those"
            )
        return videos.reshape(len(videos), -1, *videos.shape[3:])

    @contextmanager
    def encoding(self, prompt: str) -> Iterator[None]:
        """Encode a prompt anew for pictures in the block: text encoders aren't what they were."""
        before = self._encoded
        if before is not None:
            self._encoded = {**before, **(encode_with(self._pipe, [prompt], self._workload) or {})}
        try:
            yield
        finally:
            self._encoded = before

    def _on_step(self, pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
        now = time.monotonic()
        if now - self._told > _EVENT_SECONDS:
            self._told = now
            self._desk.step()
        return kwargs
