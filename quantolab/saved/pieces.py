"""What a module's file holds, module by module, each module's values made when they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..backends import header_notes, stored_form_of
from ..errors import ArgumentError
from ..files.layout import Piece, Spec, plan_files, specs_of


def pieces(module: torch.nn.Module) -> Iterator[Piece]:
    """Yield what a module's file holds, module by module, in the order of its state dict.

    Tensors that share their memory come once, under their first name.

    Raises
    ------
    ArgumentError
        If a layer is quantized but not frozen, or its tensors lie on the meta device.
    UnsupportedError
        If activations are quantized.
    """
    seen: set[int] = set()
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        form = stored_form_of(part)
        piece = _plain_piece(part, prefix) if form is None else form.piece_of(part, prefix, path)
        piece = _without_seen(piece, part, prefix, seen)
        if piece.specs:
            yield piece


def _plain_piece(part: torch.nn.Module, prefix: str) -> Piece:
    tensors: dict[str, Any] = {}
    part._save_to_state_dict(tensors, prefix, keep_vars=False)
    tensors = {n: t for n, t in tensors.items() if isinstance(t, torch.Tensor)}
    specs = tuple(Spec(n, t.dtype, tuple(t.shape)) for n, t in tensors.items())
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise ArgumentError(f"{name!r} lies on the meta device: load the weights before saving")
    return Piece(specs, lambda: list(tensors.values()))


def _without_seen(piece: Piece, part: torch.nn.Module, prefix: str, seen: set[int]) -> Piece:
    """Return the piece without tensors that an earlier module shares with this one."""
    shared = set()
    own = {**part._parameters, **part._buffers}
    for leaf, tensor in own.items():
        if tensor is None or not tensor.numel():
            continue
        if id(tensor) in seen:
            shared.add(prefix + leaf)
        seen.add(id(tensor))
    if not shared:
        return piece
    keep = [
        i
        for i, spec in enumerate(piece.specs)
        if not any(spec.name == name or spec.name.startswith(name + ".") for name in shared)
    ]
    return Piece(
        tuple(piece.specs[i] for i in keep),
        lambda: [value for i, value in enumerate(piece.values()) if i in keep],
    )


def file_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of the file that `save` writes for a module, not sharded.

    Counted from shapes alone: nothing is converted or written.
    """
    specs = specs_of(pieces(module))
    notes = header_notes(module, [spec.name for spec in specs])
    return sum(layout.nbytes for layout in plan_files(specs, "model", notes=notes))
