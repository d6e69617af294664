"""Configurations for torchao as plain Diffusers' manual writes them: what paths are run with."""

from __future__ import annotations

from typing import Any

from .diffusers_form import exact_config
from .layers import own_config


def config(library: str, word: str, skip: list[str] | None = None) -> Any:
    """Return a configuration for a whole component; parameters as of Quanto's."""
    return _class(library)(own_config(word), modules_to_not_convert=skip)


def for_pipelines(word: str) -> dict[str, Any]:
    """Return the ``quant_kwargs`` of a pipeline's configuration."""
    return {"quant_type": own_config(word)}


def by_layer(words: dict[str, str]) -> Any:
    """Return a configuration that gives each layer, by its path, its own word."""
    return _class("diffusers")(exact_config(words))


def _class(library: str) -> Any:
    if library == "transformers":
        from transformers import TorchAoConfig
    else:
        from diffusers import TorchAoConfig
    return TorchAoConfig
