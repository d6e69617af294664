"""The same model with its sums in another order: as far as rounding alone takes a picture."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def sums_reordered(module: torch.nn.Module, seed: int = 0) -> Iterator[int]:
    """Have all Linear layers add their products in another order while the block runs.

    Inputs and the columns of the weight are shuffled alike, which changes nothing but how sums
    are rounded. Layers that others have taken over (quantized ones, offloaded ones) stay as they
    are.

    Yields
    ------
    int
        How many layers do so.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [
        layer
        for layer in module.modules()
        if type(layer) is torch.nn.Linear and "forward" not in vars(layer)
    ]
    for layer in layers:
        order = torch.randperm(layer.in_features, generator=generator).to(layer.weight.device)
        vars(layer)["forward"] = functools.partial(_product, layer, order)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _product(layer: torch.nn.Linear, order: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    weight = layer.weight.index_select(1, order)
    return torch.nn.functional.linear(x.index_select(-1, order), weight, layer.bias)
