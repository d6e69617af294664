"""What a comparison takes of an accelerator: encoding first, then a recipe's parts and a picture.

All of it is arithmetic over shapes; nothing here was measured on a card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..weights import COMPUTE_BYTES, weights_of

if TYPE_CHECKING:
    import torch

    from ..models.resolving import Resolved

CONTEXT_BYTES = 500_000_000
"""What an accelerator's own context is taken to need in each process (0.3 to 0.5 GB on NVIDIA's
cards, by their size and driver)."""

_COPIES_WHILE_QUANTIZED = 3
"""Of a layer that is quantized on a card."""


@dataclass(frozen=True)
class Profile:
    """Bytes beside the weights while a denoiser runs, unquantized."""

    peak: int
    """The most at once."""
    moments: Mapping[str, int]
    """The most while each module with weights of its own runs, by its path."""

    def times(self, pictures: int) -> Profile:
        """Return the same for several pictures at once."""
        return Profile(self.peak * pictures, {n: m * pictures for n, m in self.moments.items()})


@dataclass(frozen=True)
class Activations:
    """Bytes beside the weights while each part runs; None where its class isn't known here."""

    denoisers: Mapping[str, Profile]
    """Of those whose class is known, by name."""
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
    largest_module: int
    """The most that one of its modules holds by itself."""
    quantized: bool
    step: int | None = None
    """Of a denoiser: what it takes beside its weights while it runs; None if that isn't known."""
    step_in_groups: int | None = None
    """The same, and the weights that group offloading keeps then: those outside its blocks, and
    one block."""
    step_by_layers: int | None = None
    """The same, and the weights of the one module that sequential offloading keeps then."""


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
    """One block of the denoiser at a time beside all of the VAE, with tiles: Diffusers' group
    offloading."""
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
    name: str,
    module: torch.nn.Module,
    resolved: Resolved,
    own: Mapping[str, int],
    dtype: str,
    profile: Profile | None,
) -> PartBytes:
    """Return what is to be known of one component under one recipe.

    Parameters
    ----------
    name, module : str, torch.nn.Module
        The component.
    resolved : Resolved
        What the recipe means for it.
    own : mapping of str to int
        What each of its modules holds by itself, by path.
    dtype : str
        Compute dtype.
    profile : Profile or None
        Of a denoiser whose class is known.
    """
    unit = COMPUTE_BYTES[dtype]
    largest = max((c.layer.parameters for c in resolved.quantized), default=0)
    part = PartBytes(
        name, sum(own.values()), largest * unit, max(own.values()), bool(resolved.quantized)
    )
    if profile is None:
        return part
    copies = {
        c.layer.path: round(_copies(c.word) * c.layer.parameters * unit) for c in resolved.quantized
    }
    beside = {path: most + copies.get(path, 0) for path, most in profile.moments.items()}
    block_of = {path: _block_of(module, path) for path in own}
    blocks: dict[str, int] = {}
    for path, block in block_of.items():
        blocks[block] = blocks.get(block, 0) + own[path]
    outside = blocks.pop("", 0)
    return dataclasses.replace(
        part,
        step=max((profile.peak, *beside.values())),
        step_in_groups=outside
        + max(most + blocks.get(_block_of(module, path), 0) for path, most in beside.items()),
        step_by_layers=max(most + own.get(path, 0) for path, most in beside.items()),
    )


def _copies(word: str) -> float:
    """Return how many copies in the compute dtype a generic product makes of a quantized weight.

    Those of Quanto's ``library/qbytes_mm.py`` and ``QBitsTensor.dequantize``: integers are scaled
    into one, floats are widened before that, and less than 8 bits are unpacked to bytes.
    """
    row = weights_of(word)
    if row.grouped:
        return 1.5
    return 2 if row.floating else 1


def _block_of(module: torch.nn.Module, path: str) -> str:
    """Return the block of a denoiser's own lists that a path leads into; empty if into none."""
    import torch

    name, _, rest = path.partition(".")
    lists = (torch.nn.ModuleList, torch.nn.Sequential)
    if not rest or not isinstance(module._modules.get(name), lists):
        return ""
    return f"{name}.{rest.partition('.')[0]}"


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
    vae = sum(part.held for part in rest if part not in own)
    held = sum(part.held for part in rest)
    loading = max((_COPIES_WHILE_QUANTIZED * part.largest_layer for part in own), default=0)

    def picture(decode: int | None) -> int | None:
        step = _most(part.step for part in own)
        if step is None or decode is None:
            return None
        return held + max(step, decode, loading) + CONTEXT_BYTES

    def in_turn(running: int | None, decoding: int = vae, always: int = 0) -> int | None:
        # The denoiser, or what was kept of it, has gone when the VAE decodes.
        if running is None or found.decode_tiled is None:
            return None
        return max(always + running, decoding + found.decode_tiled) + CONTEXT_BYTES

    encode = None
    if encoders and found.encode is not None:
        placing = max(
            _COPIES_WHILE_QUANTIZED * part.largest_layer * part.quantized for part in encoders
        )
        held_then = sum(part.held for part in encoders)
        encode = held_then + max(found.encode, placing) + CONTEXT_BYTES
    return Needs(
        encode,
        picture(found.decode),
        picture(found.decode_tiled),
        in_turn(_most(part.step and part.held + part.step for part in own)),
        in_turn(_most(part.step_in_groups for part in own), always=vae),
        in_turn(
            _most(part.step_by_layers for part in own),
            max((part.largest_module for part in rest if part not in own), default=0),
        ),
    )


def _most(figures: Iterable[int | None]) -> int | None:
    """Return the most; None if one isn't known, or there is none."""
    known = list(figures)
    return None if not known or None in known else max(n for n in known if n is not None)
