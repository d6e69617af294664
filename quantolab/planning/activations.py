"""What a component takes beside its weights while it runs, from fake tensors of the true size.

The component's own forward runs on tensors that have shapes and no values, and what is alive is
counted after each operation: seconds of Python, no memory. Attention counts as its fused kernels
take it, without a matrix of all tokens by all tokens.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ..files.json_objects import read_object
from ..models.layers import kept_in_float32
from ..models.sample_inputs import sample_inputs
from ..models.source import Source, vae_scale
from ..models.videos import video_frames
from .needs import Activations, Profile

_BLOCK = 512  # bytes: what accelerators' allocators round up to
_MOST_TOKENS = 512  # FLUX's, and no less than most others' longest prompt
_PACKED = 2  # latents along a side for one token of FLUX and Qwen-Image
_BOTH_AT_ONCE = (
    "SD3Transformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel",
    "AuraFlowTransformer2DModel", "UNet2DConditionModel",
)  # fmt: skip
"""Denoisers whose pipelines hand them the prompt and the negative one in one batch."""
_PACKED_TOKENS = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")
_ENOUGH = 4
"""Blocks of a kind that are run; the last of a model may be unlike the others."""
_TILE = 512  # pixels: what Diffusers' tiled VAEs decode at a time, unless told otherwise


def activations(
    source: Source,
    modules: Mapping[str, torch.nn.Module],
    size: tuple[int, int],
    dtype: str,
    frames: int | None = None,
) -> Activations:
    """Return what the parts of a pipeline take for one picture, or one video of so many frames.

    Asked again, the same comes at once.

    Parameters
    ----------
    source : Source
        The model.
    modules : mapping of str to torch.nn.Module
        Its components on the meta device; they stay as they are.
    size : (int, int)
        Width and height in pixels.
    dtype : str
        Compute dtype.
    frames : int, optional
        Of a video; by default the pipeline's own number, if it makes videos.
    """
    frames = frames_made(source, modules, frames)
    configs = [(name, str(getattr(module, "config", ""))) for name, module in modules.items()]
    key = repr((source.pipeline, configs, size, dtype, frames, _text_tokens(source)))
    if key not in _KNOWN:
        _KNOWN[key] = _activations(source, modules, size, dtype, frames)
    return _KNOWN[key]


_KNOWN: dict[str, Activations] = {}


def frames_made(
    source: Source, modules: Mapping[str, torch.nn.Module], frames: int | None
) -> int | None:
    """Return how many frames are planned for; None for pictures.

    A pipeline's class, which takes a second to be imported, is asked only where its VAE knows time,
    or frames are asked for.
    """
    vae = modules.get("vae")
    if frames is None and (vae is None or _latent_frames(vae, 1) is None):
        return None
    return video_frames(source, frames)


def _activations(
    source: Source,
    modules: Mapping[str, torch.nn.Module],
    size: tuple[int, int],
    dtype: str,
    frames: int | None,
) -> Activations:
    vae = modules.get("vae")
    latents = None if frames is None or vae is None else _latent_frames(vae, frames)
    tile = (min(size[0], _TILE), min(size[1], _TILE))
    profiles = {
        name: _denoiser(modules[name], source, size, dtype, latents)
        for name in source.denoisers
        if name in modules
    }
    encoders = [module for name, module in modules.items() if name.startswith("text_encoder")]
    return Activations(
        {name: profile for name, profile in profiles.items() if profile is not None},
        _decode(vae, source, size, dtype, latents),
        _decode(vae, source, tile, dtype, latents),
        _most(_encoder(module, dtype, _text_tokens(source)) for module in encoders),
    )


def _latent_frames(vae: torch.nn.Module, frames: int) -> int | None:
    """Return how many latents along time a video becomes; None where its VAE doesn't say."""
    ratio = getattr(vae.config, "scale_factor_temporal", None)
    ratio = ratio or getattr(vae, "temporal_compression_ratio", None)
    return (frames - 1) // ratio + 1 if ratio else None


def _text_tokens(source: Source) -> int:
    """Return how many tokens prompts are padded to: no more than the tokenizer's longest."""
    tokenizers = sorted(source.folder.glob("tokenizer*/tokenizer_config.json"))
    if not tokenizers:  # as of models whose configuration is built in
        return _MOST_TOKENS
    longest = read_object(tokenizers[-1]).get("model_max_length")
    return min(_MOST_TOKENS, longest) if isinstance(longest, int) and longest > 0 else _MOST_TOKENS


def _most(found: Iterable[int | None]) -> int | None:
    figures = list(found)
    return None if not figures or None in figures else max(f for f in figures if f is not None)


def _denoiser(
    module: torch.nn.Module,
    source: Source,
    size: tuple[int, int],
    dtype: str,
    latents: int | None,
) -> Profile | None:
    name = type(module).__name__
    pixels = vae_scale(source) * (_PACKED if name in _PACKED_TOKENS else 1)
    side = max(1, round(math.sqrt(size[0] * size[1]) / pixels))
    if name == "UNet2DConditionModel":  # its inputs come from its configuration alone
        inputs = sample_inputs(module, getattr(torch, dtype))
        if inputs is not None:
            inputs["sample"] = torch.empty(1, module.config.in_channels, side, side)
            inputs["sample"] = inputs["sample"].to(getattr(torch, dtype))
    else:
        inputs = sample_inputs(
            module,
            getattr(torch, dtype),
            side=side,
            tokens=_text_tokens(source),
            frames=latents or 1,
        )
    if inputs is None:
        return None
    found = profile_of(module, lambda fake, given: fake(**given), inputs, dtype)
    return found and found.times(2 if name in _BOTH_AT_ONCE else 1)


def _decode(
    module: torch.nn.Module | None,
    source: Source,
    size: tuple[int, int],
    dtype: str,
    latents: int | None,
) -> int | None:
    if module is None or not hasattr(module, "decode"):
        return None
    config, scale = module.config, vae_scale(source)
    channels = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
    if not channels:
        return None
    frames = (latents or 1,) if latents or hasattr(config, "z_dim") else ()  # those of videos
    latent = torch.empty(1, channels, *frames, size[1] // scale, size[0] // scale)
    wide = bool(getattr(config, "force_upcast", False)) and dtype == "float16"
    kind = "float32" if wide else dtype

    def decode(fake: Any, given: dict[str, Any]) -> torch.Tensor:
        return fake.decode(given["z"]).sample.float()

    return live_bytes(module, decode, {"z": latent.to(getattr(torch, kind))}, kind)


def _encoder(module: torch.nn.Module, dtype: str, tokens: int) -> int | None:
    longest = getattr(module.config, "max_position_embeddings", None) or tokens
    inputs = sample_inputs(module, getattr(torch, dtype), tokens=min(longest, tokens))
    if inputs is None:
        return None
    return live_bytes(module, lambda fake, given: fake(**given), inputs, dtype)


def live_bytes(
    module: torch.nn.Module,
    call: Callable[[Any, dict[str, Any]], Any],
    inputs: Mapping[str, Any],
    dtype: str,
) -> int | None:
    """Return the most bytes that are alive at once, beside the weights, while a module is called.

    Parameters and returns as for `profile_of`, but for the one figure.
    """
    found = profile_of(module, call, inputs, dtype)
    return None if found is None else found.peak


def profile_of(
    module: torch.nn.Module,
    call: Callable[[Any, dict[str, Any]], Any],
    inputs: Mapping[str, Any],
    dtype: str,
) -> Profile | None:
    """Return how many bytes are alive, beside the weights, while a module is called.

    Parameters
    ----------
    module : torch.nn.Module
        On the meta device. It stays as it is.
    call : callable
        Takes the module and the inputs, both without values.
    inputs : mapping
        What it is called with.
    dtype : str
        Compute dtype of the weights.

    Returns
    -------
    Profile or None
        None where the module can't be run without values.
    """
    for short in (True, False):
        mode, live = FakeTensorMode(), _Live()
        try:
            given = tree_map(
                lambda v, m=mode: m.from_tensor(v) if torch.is_tensor(v) else v, inputs
            )
            with (
                mode,
                _shortened(module, short) as left_out,
                _without_values(module, dtype),
                live.watching(module),
                torch.no_grad(),
                live,
            ):
                call(module, given)
            moments = live.moments
            for blocks, count in left_out:
                moments = _with_left_out(moments, blocks, count)
            return Profile(live.peak, moments)
        except Exception:  # what a class does with values, or its depth, nobody can list
            continue
    return None


@contextmanager
def _shortened(module: torch.nn.Module, short: bool) -> Iterator[list[tuple[str, int]]]:
    """Leave out equal blocks for a while: what one leaves alive is what the next one takes.

    Yields the path of each such list of blocks and how many there are, outermost first.
    """
    before, found = [], []
    for path, part in list(module.named_modules()) if short else []:
        for name, blocks in list(part._modules.items()):
            many = isinstance(blocks, torch.nn.ModuleList) and len(blocks) > _ENOUGH
            if many and len({type(block) for block in blocks}) == 1:
                before.append((part, name, blocks))
                found.append((f"{path}.{name}".lstrip("."), len(blocks)))
                part._modules[name] = torch.nn.ModuleList([*blocks[: _ENOUGH - 1], blocks[-1]])
    try:
        yield found
    finally:
        for part, name, blocks in before:
            part._modules[name] = blocks


def _with_left_out(moments: Mapping[str, int], blocks: str, count: int) -> dict[str, int]:
    """Return figures by path for all blocks of a list; those left out are as the one before."""
    found = {}
    for path, figure in moments.items():
        head, number, rest = _in_list(path, blocks)
        if number is None:
            found[path] = figure
            continue
        last, before_last = number == _ENOUGH - 1, number == _ENOUGH - 2
        numbers = [count - 1] if last else [*range(number, count - 1)] if before_last else [number]
        found.update({f"{head}.{n}{rest}": figure for n in numbers})
    return found


def _in_list(path: str, blocks: str) -> tuple[str, int | None, str]:
    """Return the list, the number in it and the rest of a path; None where it isn't in the list."""
    if not path.startswith(f"{blocks}."):
        return path, None, ""
    number, dot, rest = path[len(blocks) + 1 :].partition(".")
    return blocks, int(number), dot + rest


class _without_values:
    """Puts tensors without values into a module on the meta device, and takes them out again."""

    def __init__(self, module: torch.nn.Module, dtype: str) -> None:
        self._module = module
        self._dtype = dtype
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> None:
        for path, part in self._module.named_modules():
            for held in (part._parameters, part._buffers, vars(part)):
                for name, value in list(held.items()):
                    fake = _fake_of(value, self._kind(f"{path}.{name}"))
                    if fake is not value:
                        self._before.append((held, name, value))
                        held[name] = fake

    def __exit__(self, *error: object) -> None:
        for held, name, value in self._before:
            held[name] = value

    def _kind(self, name: str) -> torch.dtype:
        wide = kept_in_float32(self._module, name, self._dtype)
        return torch.float32 if wide else getattr(torch, self._dtype)


def _fake_of(value: Any, kind: torch.dtype) -> Any:
    """Return a value with its meta tensors as fake ones of a CPU; itself if it has none."""
    if isinstance(value, torch.nn.Parameter):
        dtype = kind if value.is_floating_point() else value.dtype
        fake = torch.empty(value.shape, dtype=dtype, device="cpu")
        return torch.nn.Parameter(fake, requires_grad=False)
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cpu")
    if isinstance(value, (list, tuple)) and any(torch.is_tensor(one) for one in value):
        return type(value)(_fake_of(one, kind) for one in value)
    return value


class _Live(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.moments: dict[str, int] = {}
        """The most while each module with weights of its own ran, by path."""
        self._running: dict[str, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}

    @contextmanager
    def watching(self, module: torch.nn.Module) -> Iterator[None]:
        """See to what is alive while each part with weights of its own runs."""

        def begins(path: str, *_: Any) -> None:
            self._running[path] = self.now

        def ends(path: str, *_: Any) -> None:
            most = self._running.pop(path, 0)
            self.moments[path] = max(self.moments.get(path, 0), most)

        handles = []
        for path, part in module.named_modules():
            if next(part.parameters(recurse=False), None) is not None:
                handles.append(part.register_forward_pre_hook(partial(begins, path)))
                handles.append(part.register_forward_hook(partial(ends, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage()._cdata
            for one in tree_flatten((args, kwargs))[0]
            if isinstance(one, torch.Tensor)
        }
        for one in tree_flatten(made)[0]:
            if isinstance(one, torch.Tensor):
                self._add(one, given)
        return made

    def _add(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, count = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._watched or key in given:
            return
        self.now += count
        self.peak = max(self.peak, self.now)
        for path, most in self._running.items():
            self._running[path] = max(most, self.now)

        def freed(_: object, key: int = key, count: int = count) -> None:
            self._watched.pop(key, None)
            self.now -= count

        self._watched[key] = weakref.ref(storage, freed)
