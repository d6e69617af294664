"""Configurations for Quanto as plain Diffusers' manual writes them: what paths are run with."""

from __future__ import annotations

import warnings
from typing import Any

from ...errors import UnsupportedError


def config(library: str, word: str, skip: list[str] | None = None) -> Any:
    """Return a configuration for a whole component.

    Parameters
    ----------
    library : str
        ``"diffusers"`` or ``"transformers"``, whose the component is.
    word : str
        Weights word of all its layers.
    skip : list of str, optional
        What the configuration is told not to convert, as users write it.
    """
    if library == "transformers":
        from transformers import QuantoConfig

        return QuantoConfig(weights=word, modules_to_not_convert=skip)
    from diffusers import QuantoConfig

    with warnings.catch_warnings():  # that QuantoConfig will go is no outcome of a path
        warnings.simplefilter("ignore", FutureWarning)
        return QuantoConfig(weights_dtype=word, modules_to_not_convert=skip)


def for_pipelines(word: str) -> dict[str, Any]:
    """Return the ``quant_kwargs`` of a pipeline's configuration."""
    return {"weights_dtype": word}


def by_layer(words: dict[str, str]) -> Any:
    """Refuse: the class can't say it.

    Raises
    ------
    UnsupportedError
        Always.
    """
    said = "takes one weights_dtype a model; its modules_to_not_convert only keeps layers"
    raise UnsupportedError(f"QuantoConfig {said}")
