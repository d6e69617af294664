"""Prompts, seeds, steps and size become pictures: the part of a trial that knows pipelines."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..backends import kernels
from ..devices import give_back, synchronize
from ..errors import ArgumentError, UnsupportedError, is_out_of_memory
from ..files.digests import file_digest
from ..loading.component import load_component
from ..loading.lora import add_lora
from ..loading.pipelines import assemble
from ..loading.report import WAIT
from ..measure.held_bytes import weight_bytes
from ..measure.quality import check_pixels
from ..models.resolving import reference_share, shares_in
from ..models.skeleton import quiet_libraries
from ..models.source import Source
from ..processes.jobs import Desk
from ..records import AHEAD, IN_TRIAL, WhenEncoded, Workload
from ..saved.pieces import file_bytes
from .jobs import TrialJob
from .offloading import decode_in_tiles, offload
from .ways import RESIDENT

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# What `encode_prompt` of a pipeline class returns, under the names by which its `__call__` takes
# it back (None: not taken back). Source: the classes' own signatures, Diffusers 0.42. A class
# that isn't listed gets its prompts as text and encodes them in each generation.
_SD3 = (
    "prompt_embeds", "negative_prompt_embeds",
    "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip

_MASKED = (
    "prompt_embeds", "prompt_attention_mask",
    "negative_prompt_embeds", "negative_prompt_attention_mask",
)  # fmt: skip

_ENCODED_AS: dict[str, tuple[str | None, ...]] = {
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds", None),
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusionXLPipeline": _SD3,
    "PixArtAlphaPipeline": _MASKED,
    "PixArtSigmaPipeline": _MASKED,
    "SanaPipeline": _MASKED,
    "AuraFlowPipeline": _MASKED,
}

_EVENT_SECONDS = 0.2  # at most so many progress events a second: each costs a system call


@dataclass
class Prepared:
    """A pipeline that is ready to make pictures, and what it took to get there."""

    pipe: Any
    denoiser: torch.nn.Module
    encoded: dict[str, dict[str, torch.Tensor]] | None
    """By prompt, keyword arguments for the pipeline; None if it takes the text itself."""
    weight_bytes: int
    file_bytes: int | None
    """None where what is held can't be saved."""
    load_seconds: float
    notes: tuple[str, ...]
    when_encoded: WhenEncoded
    kernel: str | None = None
    """What multiplies by the quantized weights, in words."""


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
        encoded, loaded = _encoded_first(asked, encoders)
        names = tuple(name for name in names if name not in encoders)
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
    offload(pipe, source.denoisers, asked.way.offload, device)
    if asked.compiled:
        for name in source.default_components:  # loaded by us or with the pipeline
            getattr(pipe, name).compile()
    if encoded is None:
        encoded = encode_with(pipe, asked.workload.prompts, device)
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

    What offloads moves them anyway; a LoRA may change them, and activations are calibrated by
    whole pictures.
    """
    return (
        asked.source.pipeline in _ENCODED_AS
        and asked.way.offload == RESIDENT
        and asked.lora is None
        and asked.recipe.activations is None
    )


def _encoded_first(
    asked: TrialJob, encoders: tuple[str, ...]
) -> tuple[dict[str, dict[str, torch.Tensor]] | None, _Loaded]:
    """Return the prompts as quantized text encoders encode them, which are gone afterwards.

    Where a device doesn't hold them, the processor encodes.
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
) -> tuple[dict[str, dict[str, torch.Tensor]] | None, _Loaded]:
    loaded = _Loaded()
    source, workload = asked.source, asked.workload
    parts = {
        **dict.fromkeys((*source.default_components, "vae")),
        **loaded.load(asked, encoders, place),
    }
    pipe = build_pipeline(source, parts, dtype=workload.dtype, device=place, encoders=True)
    encoded = encode_with(pipe, workload.prompts, place) or {}
    found = {
        prompt: {name: value.to(workload.device) for name, value in text.items()}
        for prompt, text in encoded.items()
    }
    del pipe, parts, encoded
    give_back(place)
    return found, loaded


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


def check_pipeline(name: str) -> None:
    """Make sure, before anything is loaded, that a pipeline makes pictures from text alone.

    Raises
    ------
    UnsupportedError
        If it makes something else or needs more.
    """
    import diffusers
    from diffusers.pipelines import auto_pipeline

    cls = getattr(diffusers, name, None)
    if cls is None or cls in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        return  # or whoever loads it says that there is none
    accepted = list(inspect.signature(cls.__call__).parameters.values())[1:]
    names = {parameter.name for parameter in accepted}
    from_pictures = (
        *auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values(),
        *auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING.values(),
    )
    needed = {p.name for p in accepted if p.default is p.empty} | {accepted[0].name}
    if names & _FRAMES:
        raise UnsupportedError(f"{name} makes videos; compared are pictures made from text")
    if any(n.startswith("audio") and n != "audio" for n in names):
        raise UnsupportedError(f"{name} makes sound; compared are pictures made from text")
    if cls in from_pictures or needed & _OTHER_INPUTS:
        raise UnsupportedError(
            f"{name} needs a picture to begin with; compared are pictures made from text"
        )
    if "prompt" not in names:
        raise UnsupportedError(f"{name} takes no prompt; compared are pictures made from text")


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


def encode_prompts(
    source: Source, prompts: Iterable[str], *, dtype: str, device: str
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Return the encoded prompts, with nothing but the text encoders in memory.

    None if this pipeline's prompts can't be encoded ahead.
    """
    if source.pipeline not in _ENCODED_AS:
        return None
    left_out = dict.fromkeys((*source.default_components, "vae"))
    pipe = build_pipeline(source, left_out, dtype=dtype, device=device, encoders=True)
    return encode_with(pipe, prompts, device)


@torch.no_grad()
def encode_with(
    pipe: Any, prompts: Iterable[str], device: str
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Return, for each prompt, the keyword arguments that stand for it in the pipeline's call."""
    names = _ENCODED_AS.get(type(pipe).__name__)
    if names is None:
        return None
    accepted = inspect.signature(pipe.encode_prompt).parameters
    extra: dict[str, Any] = {"device": device}
    if "prompt_2" in accepted:
        extra["prompt_2"] = None
    if "prompt_3" in accepted:
        extra["prompt_3"] = None
    extra.update(text_length(pipe, accepted))
    encoded = {}
    with quiet_libraries():
        for prompt in prompts:
            values = pipe.encode_prompt(prompt=prompt, **extra)
            encoded[prompt] = {
                name: value
                for name, value in zip(names, values, strict=True)
                if name is not None and value is not None
            }
    return encoded


def save_encoded(encoded: dict[str, dict[str, torch.Tensor]], path: Path) -> None:
    """Write encoded prompts to one safetensors file."""
    from safetensors.torch import save_file

    tensors = {
        f"{number}.{name}": value.cpu().contiguous()
        for number, kwargs in enumerate(encoded.values())
        for name, value in kwargs.items()
    }
    save_file(tensors, path, metadata={"prompts": json.dumps(list(encoded))})


def load_encoded(path: Path, device: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return what `save_encoded` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        prompts = json.loads(file.metadata()["prompts"])
        encoded: dict[str, dict[str, torch.Tensor]] = {prompt: {} for prompt in prompts}
        for key in file.keys():  # noqa: SIM118 - a safetensors handle is no dict
            number, _, name = key.partition(".")
            value = file.get_tensor(key).to(device=device, copy=True)
            encoded[prompts[int(number)]][name] = value
    return encoded


class Studio:
    """Makes pictures one at a time, all in the same way, and says how long each took."""

    def __init__(self, prepared: Prepared, workload: Workload, desk: Desk) -> None:
        self._pipe = prepared.pipe
        self._encoded = prepared.encoded
        self._device = workload.device
        self._desk = desk
        self._told = 0.0
        width, height = workload.size
        accepted = inspect.signature(self._pipe.__call__).parameters
        arguments: dict[str, Any] = {
            "num_inference_steps": workload.steps,
            "width": width,
            "height": height,
            "output_type": "np",
            "guidance_scale": workload.guidance,
            "callback_on_step_end": self._on_step,
        }
        if arguments["guidance_scale"] is None:
            del arguments["guidance_scale"]
        if self._encoded is None:
            arguments.update(text_length(self._pipe, accepted))
        self._arguments = {k: v for k, v in arguments.items() if k in accepted}
        # Pipelines whose embeddings include negative ones refuse a default negative prompt text.
        if self._encoded is not None and "negative_prompt" in accepted:
            self._arguments["negative_prompt"] = None

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
        return Image.fromarray((pixels * 255).round().astype("uint8")), seconds

    def pixels(self, prompt: str, seed: int) -> np.ndarray:
        """Return one picture's values from 0 to 1, whatever they are, rows by columns by colours.

        Raises
        ------
        UnsupportedError
            If the pipeline makes something else.
        """
        return self._made([(prompt, seed)])[0]

    @property
    def makes_several(self) -> bool:
        """Whether several pictures can be made in one go: their prompts are encoded alike."""
        if self._encoded is None:
            return False
        shapes = {
            tuple(sorted((name, tuple(value.shape)) for name, value in text.items()))
            for text in self._encoded.values()
        }
        return len(shapes) == 1 and all(
            value.ndim > 1 and len(value) == 1
            for text in self._encoded.values()
            for value in text.values()
        )

    def several(self, pairs: Sequence[tuple[str, int]]) -> list[np.ndarray]:
        """Return the values of several pictures that are made in one go."""
        return list(self._made(pairs))

    def _made(self, pairs: Sequence[tuple[str, int]]) -> np.ndarray:
        # Noise from the CPU's generator is the same on every device.
        noise = [torch.Generator("cpu").manual_seed(seed) for _, seed in pairs]
        text: dict[str, Any] = {"prompt": pairs[0][0]}
        if self._encoded is not None:
            own = [self._encoded[prompt] for prompt, _ in pairs]
            text = own[0]
            if len(own) > 1:
                text = {name: torch.cat([one[name] for one in own]) for name in own[0]}
        with torch.no_grad(), quiet_libraries():
            made = self._pipe(
                **text, **self._arguments, generator=noise if len(noise) > 1 else noise[0]
            )
        if not hasattr(made, "images"):
            raise UnsupportedError(
                f"{type(self._pipe).__name__} makes no pictures but {type(made).__name__}"
            )
        return made.images

    @contextmanager
    def encoding(self, prompt: str) -> Iterator[None]:
        """Encode a prompt anew for pictures in the block: text encoders aren't what they were."""
        before = self._encoded
        if before is not None:
            self._encoded = {**before, **(encode_with(self._pipe, [prompt], self._device) or {})}
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


def text_length(pipe: Any, accepted) -> dict[str, int]:
    """Return the prompt length in tokens: the pipeline's own, or its tokenizer's if that is less.

    FLUX pads every prompt to 512 tokens, also for a model whose tokenizer says 32.
    """
    parameter = accepted.get("max_sequence_length")
    if parameter is None or not isinstance(parameter.default, int):
        return {}
    tokenizers = sorted(n for n in pipe.components if n.startswith("tokenizer"))
    longest = getattr(getattr(pipe, tokenizers[-1], None), "model_max_length", None)
    if tokenizers and isinstance(longest, int):
        return {"max_sequence_length": min(parameter.default, longest)}
    return {}
