"""Modules and tensors are put where a model waits for them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

import torch


def put_module(root: torch.nn.Module, path: str, new: torch.nn.Module) -> torch.nn.Module:
    """Put a module at a path and return the root, which is the new module for an empty path."""
    if not path:
        return new
    owner, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(owner), leaf, new)
    return root


def put_tensor(owners: Mapping[str, torch.nn.Module], name: str, value: torch.Tensor) -> None:
    """Put a tensor where a module of ``named_modules()`` waits for it."""
    path, _, leaf = name.rpartition(".")
    owner = owners[path]
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value


def place_buffers(module: torch.nn.Module, device: str) -> None:
    """Move buffers that lie elsewhere to a device."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta and buffer.device != torch.device(device):
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def release_memory() -> None:
    """Give memory that quantizing has freed back to the system, where the C library can."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            pass  # another C library: it decides by itself
