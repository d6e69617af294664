"""What plain Diffusers makes of a saved folder, and what to tell it: a configuration by layer.

torchao's list of modules to skip is compared by parts of names, and keeps others too. Its
configurations by full name say exactly which layers are quantized, and how.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..forms import DiffusersForm
from .layers import own_config
from .library import FqnToConfig, config_to_dict


def exact_config(quantized: dict[str, str]) -> Any:
    """Return torchao's configuration for exactly these layers."""
    by_word = {word: own_config(word) for word in set(quantized.values())}
    return FqnToConfig({path: by_word[word] for path, word in quantized.items()})


def diffusers_form(
    module: torch.nn.Module, quantized: dict[str, str], kept: Iterable[str], library: str
) -> DiffusersForm:
    """Return how plain Diffusers can be told what is quantized; arguments as for every backend."""
    config = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(exact_config(quantized))},
        "modules_to_not_convert": None,
    }
    return DiffusersForm(True, "", config)
