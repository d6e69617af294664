"""What a comparison takes of an accelerator: encoding first, then a recipe's parts and a picture.

All of it is arithmetic over shapes; nothing here was measured on a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..weights import COMPUTE_BYTES, REFERENCE, weights_of

if TYPE_CHECKING:
    import torch

    from ..models.resolving import Resolved

CONTEXT_BYTES = 500_000_000
"""What an accelerator's own context is taken to need in each process (0.3 to 0.5 GB on NVIDIA's
cards, by their size and driver)."""

_TIMES_8_BITS, _TIMES_LESS = 1, 3
"""Copies in the compute dtype that a generic product makes of a quantized weight. A layer that is
quantized on a card takes the latter too."""


@dataclass(frozen=True)
class Activations:
    """Bytes beside the weights while each part runs; None where its class isn't known here."""

    denoiser: int | None
    decode: int | None
    decode_tiled: int | None
    encode: int | None


@dataclass(frozen=True)
class PartBytes:
    """One component under one recipe."""

    name: str
    held: int
    largest_layer: int
    """Bytes of its largest Linear layer in the compute dtype; 0 where nothing is quantized."""
    times: int
    """Copies of that layer which a product makes beside it."""
    largest_blocks: int
    """What group offloading keeps: the parts outside its blocks, and the two largest blocks."""
    largest_leaf: int
    """The largest module of its own weights: what sequential offloading keeps."""


@dataclass(frozen=True)
class Needs:
    """Bytes of an accelerator, its context included; None where a class isn't known here."""

    encode: int | None
    """Text encoders alone, encoding prompts."""
    resident: int | None
    """All other parts at once, making a picture."""
    tiled: int | None
    """The same, with a VAE that decodes in tiles."""
    model: int | None
    """One part at a time, with tiles: Diffusers' model offload."""
    group: int | None
    """Two blocks of the denoiser at a time, with tiles: Diffusers' group offloading."""
    sequential: int | None
    """One layer at a time, with tiles: accelerate's sequential offload."""

    def beside(self, more: int) -> Needs:
        """Return the same with something beside the weights, such as a LoRA, however it runs."""
        held = {name: value and value + more for name, value in vars(self).items()}
        return Needs(**held)

    @property
    def compare(self) -> int | None:
        """The most that a comparison takes with everything resident."""
        both = (self.encode, self.resident)
        return None if None in both else max(n for n in both if n is not None)


def part_bytes(
    name: str, module: torch.nn.Module, resolved: Resolved, held: int, dtype: str
) -> PartBytes:
    """Return what is to be known of one component under one recipe."""
    unit = COMPUTE_BYTES[dtype]
    largest = max(resolved.quantized, key=lambda c: c.layer.parameters, default=None)
    share = held / max(1, sum(p.numel() for p in module.parameters()))
    times = 0
    if largest is not None and largest.word != REFERENCE:
        times = _TIMES_LESS if weights_of(largest.word).grouped else _TIMES_8_BITS
    return PartBytes(
        name,
        held,
        0 if largest is None else largest.layer.parameters * unit,
        times,
        round(_blocks(module) * share),
        round(_leaf(module) * share),
    )


def _blocks(module: torch.nn.Module) -> int:
    import torch

    lists = (torch.nn.ModuleList, torch.nn.Sequential)
    blocks = [block for child in module.children() if isinstance(child, lists) for block in child]
    sizes = sorted((_count(block) for block in blocks), reverse=True)
    return _count(module) - sum(sizes) + sum(sizes[:2])


def _leaf(module: torch.nn.Module) -> int:
    own = (sum(p.numel() for p in part.parameters(recurse=False)) for part in module.modules())
    return max(own, default=0)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def needs(parts: Mapping[str, PartBytes], denoisers: tuple[str, ...], found: Activations) -> Needs:
    """Return what one recipe takes.

    Parameters
    ----------
    parts : mapping of str to PartBytes
        Every component with weights.
    denoisers : tuple of str
        Which of them are denoisers.
    found : Activations
        What they take while they run.
    """
    encoders = [part for name, part in parts.items() if name.startswith("text_encoder")]
    rest = [part for part in parts.values() if part not in encoders]
    own = [part for part in rest if part.name in denoisers]
    beside = max((part.times * part.largest_layer for part in own), default=0)
    stepping = None if found.denoiser is None else found.denoiser + beside
    loading = max((_TIMES_LESS * part.largest_layer for part in own), default=0)

    def picture(held: int, decode: int | None) -> int | None:
        if stepping is None or decode is None:
            return None
        return held + max(stepping, decode, loading) + CONTEXT_BYTES

    vae = sum(part.held for part in rest if part not in own)

    def in_turn(kept: int) -> int | None:
        if stepping is None or found.decode_tiled is None:
            return None
        return max(kept + stepping, vae + found.decode_tiled) + CONTEXT_BYTES

    group = picture(sum(part.largest_blocks for part in own) + vae, found.decode_tiled)
    held = sum(part.held for part in rest)
    encode = None
    if encoders and found.encode is not None:
        placing = max(_TIMES_LESS * part.largest_layer * bool(part.times) for part in encoders)
        held_then = sum(part.held for part in encoders)
        encode = held_then + max(found.encode, placing) + CONTEXT_BYTES
    return Needs(
        encode,
        picture(held, found.decode),
        picture(held, found.decode_tiled),
        in_turn(max((part.held for part in own), default=0)),
        group,
        in_turn(max((part.largest_leaf for part in own), default=0)),
    )
