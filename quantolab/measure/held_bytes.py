"""What a quantized weight really is: plain tensors inside wrappers, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..arguments import public

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def inner_tensors(tensor: torch.Tensor, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain tensors that a tensor is made of, with their dotted names.

    A quantized weight is a wrapper around data, scale and shift, and its data may be a wrapper
    again; an ordinary tensor yields itself.
    """
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not plain and hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:
            yield from inner_tensors(getattr(tensor, inner), f"{name}.{inner}" if name else inner)
    else:
        yield name, tensor


@public
def weight_bytes(module: torch.nn.Module | DiffusionPipeline) -> int:
    """Return the bytes that the parameters and buffers of a module or pipeline hold in memory.

    Inner tensors of quantized weights are counted (data, scales, shifts) and shared storage
    once. ``module.get_memory_footprint()`` reports a quantized model as if it weren't, since
    the wrapper answers with its outer shape and dtype.

    Parameters
    ----------
    module : torch.nn.Module or DiffusionPipeline
        Any module, quantized or not; of a pipeline, all of its components.

    Examples
    --------
    >>> weight_bytes(torch.nn.Linear(16, 4, dtype=torch.bfloat16))
    136
    """
    total, seen = 0, set()
    for tensor in _tensors(module):
        for _, plain in inner_tensors(tensor):
            if not plain.numel():
                continue
            key = _storage(plain)
            if key not in seen:
                seen.add(key)
                total += plain.nbytes
    return total


def _tensors(whole: torch.nn.Module | DiffusionPipeline) -> Iterator[torch.Tensor]:
    parts = [whole] if isinstance(whole, torch.nn.Module) else whole.components.values()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            yield from (*part.parameters(), *part.buffers())


def _storage(tensor: torch.Tensor) -> tuple:
    if tensor.device.type == "meta":
        return (id(tensor),)  # nothing is stored, so nothing is shared
    return (tensor.device, tensor.data_ptr(), tensor.nbytes)
