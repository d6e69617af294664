"""Tensors that modules share: which names are one tensor, and how they become one again."""

from __future__ import annotations

import torch

from .folder import SavedFolder


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Return ``{name: the first name of the same tensor}`` for tensors that modules share."""
    first: dict[int, str] = {}
    tied = {}
    listed = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in listed:
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return tied


def ties_of(module: torch.nn.Module, saved: SavedFolder) -> dict[str, str]:
    """Return which names are the same tensor, by the class or by the record: name to first name."""
    # On the meta device tied parameters are two; transformers keeps a list of them.
    of_class = getattr(module, "all_tied_weights_keys", None) or {}
    recorded = saved.record.tied if saved.record is not None else of_class
    own = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known = {n: first for n, first in recorded.items() if n in own and first in own}
    return {**known, **tied_names(module)}


def tie(module: torch.nn.Module, saved: SavedFolder, ties: dict[str, str]) -> None:
    """Let modules share the tensors of which the files hold one copy."""
    held = saved.entries
    for name, first in ties.items():
        source, target = (first, name) if first in held else (name, first)
        if source not in held or target in held:
            continue
        owner_path, _, leaf = source.rpartition(".")
        shared = getattr(module.get_submodule(owner_path), leaf)
        owner_path, _, leaf = target.rpartition(".")
        owner = module.get_submodule(owner_path)
        (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = shared
