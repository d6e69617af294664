"""Prompts, seeds, steps and size become pictures: the part of a trial that knows pipelines."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..devices import synchronize
from ..errors import BrokenModelError, UnsupportedError
from ..models.skeleton import quiet_libraries
from ..models.source import Source, find_model
from ..recipes import REFERENCE, Recipe

if TYPE_CHECKING:
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
    file_bytes: int
    load_seconds: float
    notes: tuple[str, ...]


def prepare(request: dict) -> Prepared:
    """Load and quantize the components that are counted, and build the pipeline around them."""
    from ..backends.quanto.files import file_bytes
    from ..backends.quanto.reading import load_component
    from ..backends.quanto.tensors import weight_bytes

    source = find_model(request["model"])
    recipe = Recipe.from_dict(request["recipe"])
    dtype, device = request["dtype"], request["device"]
    quantized = recipe.components or (source.denoiser,)
    parts: dict[str, torch.nn.Module] = {}
    notes: list[str] = []
    started = time.perf_counter()
    for name in request["components"]:
        part_recipe = recipe if name in quantized else Recipe(REFERENCE)
        parts[name], report = load_component(
            source.component(name), part_recipe, dtype=dtype, device=device, strict_skip=False
        )
        notes += [f"{name}: {note}" for note in report.notes()]
    synchronize(device)
    load_seconds = time.perf_counter() - started
    if request["compiled"]:
        parts[source.denoiser].compile()
    encoders_here = any(name.startswith("text_encoder") for name in parts)
    encoded_file = request.get("encoded")
    use_file = bool(encoded_file) and not encoders_here
    pipe = build_pipeline(source, parts, dtype=dtype, device=device, encoders=not use_file)
    if use_file:
        encoded = load_encoded(Path(encoded_file), device)
    else:
        encoded = encode_with(pipe, request["prompts"], device)
    return Prepared(
        pipe,
        getattr(pipe, source.denoiser),
        encoded,
        sum(weight_bytes(module) for module in parts.values()),
        sum(file_bytes(module) for module in parts.values()),
        load_seconds,
        tuple(notes),
    )


def build_pipeline(
    source: Source,
    parts: dict[str, torch.nn.Module | None],
    *,
    dtype: str,
    device: str,
    encoders: bool,
) -> Any:
    """Return the pipeline of a model around components that are loaded already.

    Parameters
    ----------
    source : Source
        The model.
    parts : dict
        Components by name; None leaves one out.
    dtype, device : str
        Compute dtype and device of the rest.
    encoders : bool
        Whether text encoders are needed; False leaves them and their tokenizers out.
    """
    import diffusers

    if source.pipeline is None:
        raise UnsupportedError(
            f"{source.model!r} is one component, not a pipeline: it can be loaded and quantized, "
            "but makes no pictures"
        )
    cls = getattr(diffusers, source.pipeline, None)
    if cls is None:
        raise UnsupportedError(f"diffusers {diffusers.__version__} has no {source.pipeline}")
    left_out: dict[str, Any] = {}
    if not encoders:
        names = inspect.signature(cls.__init__).parameters
        left_out = {n: None for n in names if n.startswith(("text_encoder", "tokenizer"))}
    try:
        with quiet_libraries():
            pipe = cls.from_pretrained(
                str(source.folder),
                dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                **{**left_out, **parts},
            )
            pipe.to(device)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrokenModelError(
            f"the pipeline in {source.folder} can't be loaded: {first}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encode_prompts(
    source: Source, prompts: list[str], *, dtype: str, device: str
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Return the encoded prompts, with nothing but the text encoders in memory.

    None if this pipeline's prompts can't be encoded ahead.
    """
    if source.pipeline not in _ENCODED_AS:
        return None
    left_out = dict.fromkeys((source.denoiser, "vae"))
    pipe = build_pipeline(source, left_out, dtype=dtype, device=device, encoders=True)
    return encode_with(pipe, prompts, device)


@torch.no_grad()
def encode_with(
    pipe: Any, prompts: list[str], device: str
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
    extra.update(_text_length(pipe, accepted))
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
    import json

    from safetensors.torch import save_file

    tensors = {
        f"{number}.{name}": value.cpu().contiguous()
        for number, kwargs in enumerate(encoded.values())
        for name, value in kwargs.items()
    }
    save_file(tensors, path, metadata={"prompts": json.dumps(list(encoded))})


def load_encoded(path: Path, device: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return what `save_encoded` wrote."""
    import json

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

    def __init__(self, prepared: Prepared, request: dict, emit: Callable[[dict], None]) -> None:
        self._pipe = prepared.pipe
        self._encoded = prepared.encoded
        self._device = request["device"]
        self._emit = emit
        self._told = 0.0
        width, height = request["size"]
        accepted = inspect.signature(self._pipe.__call__).parameters
        arguments: dict[str, Any] = {
            "num_inference_steps": request["steps"],
            "width": width,
            "height": height,
            "output_type": "np",
            "guidance_scale": request["guidance"],
            "callback_on_step_end": self._on_step,
        }
        if arguments["guidance_scale"] is None:
            del arguments["guidance_scale"]
        if self._encoded is None:
            arguments.update(_text_length(self._pipe, accepted))
        self._arguments = {k: v for k, v in arguments.items() if k in accepted}
        # Pipelines whose embeddings include negative ones refuse a default negative prompt text.
        if self._encoded is not None and "negative_prompt" in accepted:
            self._arguments["negative_prompt"] = None

    def make(self, prompt: str, seed: int) -> tuple[Image.Image, float]:
        """Return one picture and the seconds it took, from encoded prompt to pixels.

        Raises
        ------
        BadPictureError
            If it is black, constant or not a number.
        """
        from PIL import Image

        from ..measure.quality import check_pixels

        text = {"prompt": prompt} if self._encoded is None else self._encoded[prompt]
        # Noise from the CPU's generator is the same on every device.
        noise = torch.Generator("cpu").manual_seed(seed)
        synchronize(self._device)
        started = time.perf_counter()
        with torch.no_grad(), quiet_libraries():
            pixels = self._pipe(**text, **self._arguments, generator=noise).images[0]
        synchronize(self._device)
        seconds = time.perf_counter() - started
        check_pixels(pixels)
        self._emit({"event": "picture", "seconds": seconds})
        return Image.fromarray((pixels * 255).round().astype("uint8")), seconds

    def _on_step(self, pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
        now = time.monotonic()
        if now - self._told > _EVENT_SECONDS:
            self._told = now
            self._emit({"event": "step", "step": step + 1})
        return kwargs


def _text_length(pipe: Any, accepted) -> dict[str, int]:
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
