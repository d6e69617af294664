"""The way back: quantized layers become ordinary Linear layers again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..arguments import public
from ..backends import is_quantized, quantized_layers, stored_form_of
from ..errors import ArgumentError, UnsupportedError
from .placing import put_module


@public
def dequantize(module: torch.nn.Module) -> torch.nn.Module:
    """Turn the quantized layers of a module back into ordinary Linear layers, in place.

    ``model.dequantize()``, which models of Diffusers and transformers have, does the same.

    The weights are the values that the quantized ones stand for: what quantizing has rounded
    stays rounded. Works layer by layer, so that never more than one exists twice.

    Parameters
    ----------
    module : torch.nn.Module
        With quantized layers, from `quantize`, `load`, `load_saved` or `load_single_file`.

    Returns
    -------
    torch.nn.Module
        The same object (a new one only if the module itself is a Linear layer). Its
        configuration no longer says that it is quantized, and it can be cast, saved and
        quantized like any other.

    Raises
    ------
    ArgumentError
        If nothing in it is quantized, or its weights are offloaded (on the meta device).
    UnsupportedError
        If a quantized layer isn't Linear; nothing is changed then.

    Examples
    --------
    >>> module, report = quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "int8")
    >>> dequantize(module)[0]
    Linear(in_features=64, out_features=64, bias=True)
    """
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(
            f"a torch.nn.Module was expected, not {type(module).__name__}: of a pipeline, "
            "dequantize(pipe.transformer) for example"
        )
    words = quantized_layers(module)
    if not words:
        raise ArgumentError(f"nothing in this {type(module).__name__} is quantized")
    for path in words:  # before anything changes
        layer = module.get_submodule(path)
        if not isinstance(layer, torch.nn.Linear):
            raise UnsupportedError(
                f"layer {path!r} is a {type(layer).__name__}; only Linear layers can be dequantized"
            )
        if layer.weight.is_meta:
            raise ArgumentError(
                f"the weight of layer {path!r} isn't there, it is offloaded: remove the hooks "
                "first (accelerate.hooks.remove_hook_from_submodules)"
            )
    for path in words:
        module = put_module(module, path, _plain(module.get_submodule(path)))
    _forget(module)
    return module


def _plain(layer: torch.nn.Linear) -> torch.nn.Linear:
    weight = stored_form_of(layer).plain_weight(layer)
    new = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, "meta")
    new.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
    new.bias = layer.bias
    return new.train(layer.training)


def _forget(module: torch.nn.Module) -> None:
    """Take the word about quantization out of a model's configuration and attributes."""
    for name in ("quantize_report", "quantolab_dtype"):
        module.__dict__.pop(name, None)
    config = getattr(module, "config", None)
    if hasattr(module, "_internal_dict"):
        kept = {k: v for k, v in module._internal_dict.items() if k != "quantization_config"}
        module._internal_dict = type(module._internal_dict)(kept)
    elif config is not None and "quantization_config" in getattr(config, "__dict__", {}):
        del config.quantization_config


# --- the libraries' own name for it --------------------------------------------------------------


def let_libraries_dequantize(module: torch.nn.Module) -> None:
    """Let the ``dequantize`` of a model's own library know the layers that were made here."""
    for base in type(module).__mro__:
        shipped = base.__dict__.get("dequantize")
        if base.__name__ not in ("ModelMixin", "PreTrainedModel") or shipped is None:
            continue
        if not getattr(shipped, "_quantolab_asks", False):
            base.dequantize = _asking(shipped)  # type: ignore[attr-defined]


def _asking(shipped: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(shipped)

    @functools.wraps(shipped)
    def asked(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if getattr(self, "hf_quantizer", None) is not None or not is_quantized(self):
            return shipped(self, *args, **kwargs)
        dtype = signature.bind(self, *args, **kwargs).arguments.get("dtype")
        back = dequantize(self)
        return back if dtype is None else back.to(dtype)

    asked._quantolab_asks = True  # type: ignore[attr-defined]
    return asked
