"""Configurations for SDNQ as plain Diffusers' manual writes them: what paths are run with.

SDNQ's own lists of layers to keep are switched off by the options that it has for that; else every
path would show only these.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .library import SDNQConfig
from .settings import NO_SKIPS, settings


def config(library: str, word: str, skip: list[str] | None = None) -> Any:
    """Return a configuration for a whole component; parameters as of Quanto's."""
    return SDNQConfig(**for_pipelines(word), modules_to_not_convert=skip)


def for_pipelines(word: str) -> dict[str, Any]:
    """Return the ``quant_kwargs`` of a pipeline's configuration."""
    return settings(word) | NO_SKIPS


def by_layer(words: dict[str, str]) -> Any:
    """Return a configuration that gives each layer, by its path, its own word."""
    base = Counter(words.values()).most_common(1)[0][0]
    return SDNQConfig(
        **for_pipelines(base),
        modules_quant_config={
            f"{path}.weight": settings(word) for path, word in words.items() if word != base
        },
    )
