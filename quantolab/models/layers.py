"""A component's Linear layers, seen without reading a weight; patterns become layer lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import ArgumentError, nearest
from ..shapes import Layer

if TYPE_CHECKING:
    import torch

KEEP_FP32 = "the model keeps it in float32"
KEEP_ADAPTER = "it belongs to an adapter"
_ADAPTER_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")  # PEFT's names


def linear_layers(module: torch.nn.Module) -> tuple[Layer, ...]:
    """Return every ``nn.Linear`` of a module, in the order of its own listing.

    The same set that Diffusers' ``QuantoConfig`` converts: Linear and its subclasses, never
    convolutions. Works on the meta device.
    """
    import torch

    return tuple(
        Layer(path, m.in_features, m.out_features, m.bias is not None)
        for path, m in module.named_modules()
        if isinstance(m, torch.nn.Linear)
    )


def kept_in_float32(module: torch.nn.Module, path: str, dtype: str = "bfloat16") -> bool:
    """Return whether the model's class says that what lies at `path` stays in float32.

    Diffusers lists such names in ``_keep_in_fp32_modules``, whatever the compute dtype;
    transformers means that list for float16 only, and ``_keep_in_fp32_modules_strict`` for
    bfloat16 too. A name counts when it is any part of the path. (Diffusers' quantizer compares
    leaf names only and so quantizes layers inside listed containers, Wan's ``time_embedder`` for
    one, whose biases and inputs are float32: int4 and int2 then fail and int8 fails after a
    reload. We leave them out.)
    """
    names = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if hasattr(module, "_keep_in_fp32_modules_strict"):  # a transformers model
        strict = set(module._keep_in_fp32_modules_strict or ())
        names = names | strict if dtype == "float16" else strict
    return any(part in names for part in path.split("."))


def belongs_to_adapter(path: str) -> bool:
    """Return whether a layer is one of a LoRA adapter's own matrices, beside the model's layers."""
    return any(part in _ADAPTER_PARTS for part in path.split("."))


def match_layers(
    patterns: Iterable[str], layers: Iterable[Layer], component: str = ""
) -> dict[str, str]:
    """Return the layers that patterns hit, as ``{path: the first pattern that hit it}``.

    Parameters
    ----------
    patterns : iterable of str
        Leaf names, full paths, containers' paths, or globs (``*``, ``?``, ``[...]``; a glob that
        matches a container stands for all layers under it). A leading ``component.`` is allowed.
    layers : iterable of Layer
        The component's Linear layers.
    component : str
        The component's name, for patterns that start with it.
    """
    hits: dict[str, str] = {}
    for pattern in patterns:
        bare = pattern.removeprefix(component + ".") if component else pattern
        for layer in layers:
            if layer.path not in hits and (_hits(pattern, layer) or _hits(bare, layer)):
                hits[layer.path] = pattern
    return hits


def no_match(
    pattern: str,
    layers_by_component: Mapping[str, tuple[Layer, ...]],
    *,
    what: str = "skip pattern",
    components: Iterable[str] = (),
) -> ArgumentError:
    """Return the error that says that a pattern hits nothing, with the nearest names.

    Parameters
    ----------
    pattern : str
        As it was written.
    layers_by_component : mapping of str to tuple of Layer
        The layers that there are.
    what : str
        What the pattern is for.
    components : iterable of str
        Names of components that could have been meant.
    """
    layers = [layer for ls in layers_by_component.values() for layer in ls]
    hint = nearest(pattern, components) or _suggest(pattern, layers)
    return ArgumentError(
        f"{what} {pattern!r} matches none of the {len(layers)} Linear layers of "
        f"{' and '.join(layers_by_component)}; allowed: a leaf name, a full path, a "
        f"container's path or a glob{hint}"
    )


def check_patterns(patterns: Iterable[str], layers_by_component: Mapping[str, tuple[Layer, ...]]):
    """Make sure that each pattern hits at least one layer of some component.

    Raises
    ------
    ArgumentError
        For the first one that hits nothing, with the nearest leaf names, paths and containers.
    """
    for pattern in patterns:
        if not any(match_layers((pattern,), ls, c) for c, ls in layers_by_component.items()):
            raise no_match(pattern, layers_by_component)


def _hits(pattern: str, layer: Layer) -> bool:
    if pattern in (layer.path, layer.leaf) or layer.path.startswith(pattern + "."):
        return True
    if not any(sign in pattern for sign in "*?["):
        return False
    parts = layer.path.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _suggest(pattern: str, layers: list[Layer]) -> str:
    """Nearest names; where a container's bare name was written, the glob that means it."""
    inside = [p for p in layers if f".{pattern}." in f".{p.path}"]
    if inside:
        return f"; did you mean '*.{pattern}'?"
    names = {layer.leaf for layer in layers} | {layer.path for layer in layers}
    for layer in layers:
        parts = layer.path.split(".")
        names |= {".".join(parts[:n]) for n in range(1, len(parts))}
    return nearest(pattern, sorted(names))
