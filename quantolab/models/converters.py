"""Diffusers' own converters of the layouts in which makers publish their models."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

# Converters of Diffusers that hold FLUX.1's width as a literal; other widths need another one.
_FIXED_WIDTH = 3072

_FIXED_WIDTH_CLASSES = (
    "FluxTransformer2DModel",
    "ChromaTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
)


def converter_for(
    cls: type, config: Mapping[str, Any], *, own_width: bool = True
) -> Callable[..., dict] | None:
    """Return what makes Diffusers' names of a class's original ones; None if Diffusers has none.

    Parameters
    ----------
    cls : type
        A class of Diffusers.
    config : mapping
        The model's configuration.
    own_width : bool
        Whether a converter that is written for one width is made to take the model's. With False
        it is the one that plain Diffusers runs.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    for base in cls.__mro__:
        entry = SINGLE_FILE_LOADABLE_CLASSES.get(base.__name__)
        if entry is None:
            continue
        converter: Callable[..., dict] = entry["checkpoint_mapping_fn"]
        if own_width and base.__name__ in _FIXED_WIDTH_CLASSES:
            width = config["num_attention_heads"] * config["attention_head_dim"]
            converter = with_width(converter, width)
        return converter
    return None


def with_width(converter: Callable, width: int) -> Callable:
    """Return a copy of a converter in which the literal width of FLUX.1 is another one.

    Diffusers 0.42 writes 3072 where its config says the width; a version that reads the config
    has no such literal, and its converter comes back unchanged.
    """
    return types.FunctionType(
        _replaced(converter.__code__, width),
        converter.__globals__,
        converter.__name__,
        converter.__defaults__,
        converter.__closure__,
    )


def _replaced(code: types.CodeType, width: int) -> types.CodeType:
    def replaced(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return _replaced(value, width)  # functions inside the function
        return width if type(value) is int and value == _FIXED_WIDTH else value

    return code.replace(co_consts=tuple(replaced(value) for value in code.co_consts))
