"""Casting, offloading and adapting a model with quantized layers: whole, or refused at first."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor

from ...errors import ArgumentError, UnsupportedError
from .quantizing import quantized_weight
from .row_wise import weight_of
from .tinygemm import optimized
from .writes import cast_refused, own, owned

_PARTS = {True: ("_data", "_scale"), False: ("_data._data", "_scale", "_shift")}

DISK = (
    "Diffusers' group offloading to disk writes each weight as one plain tensor, and a quantized "
    "weight isn't one: leave offload_to_disk_path out (groups are then kept in the CPU's memory), "
    "or use accelerate.disk_offload"
)


class WithWeight(Mapping):
    """What accelerate has offloaded of a layer, with its weight put together from its parts."""

    def __init__(self, inner: Mapping, layer: Any) -> None:
        self._inner = inner
        self._layer = layer

    def __getitem__(self, name: str) -> Any:
        if name != "weight" or name in self._names():
            return self._inner[name]
        return loaded_weight(self._layer, _Prefixed(self._inner), "", [])

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def _names(self) -> set[str]:
        prefix = getattr(self._inner, "prefix", "")
        return {name.removeprefix(prefix) for name in self._inner if name.startswith(prefix)}


class _Prefixed(dict):
    """accelerate's map of a layer, which asks with a prefix and lists with it too."""

    def __init__(self, inner: Mapping) -> None:
        prefix = getattr(inner, "prefix", "")
        names = [n.removeprefix(prefix) for n in inner if n.startswith(prefix + "weight")]
        super().__init__({name: inner[name] for name in names})


def loaded_weight(
    layer: Any, given: Mapping[str, torch.Tensor], prefix: str, missing: list[str]
) -> torch.Tensor | None:
    """Return a layer's weight from tensors of its own kind, or from an unquantized weight.

    Parameters
    ----------
    layer : QuantoLinear
        Whose weight it will be.
    given : mapping of str to torch.Tensor
        By their names with `prefix`.
    prefix : str
        Path of the layer with a dot at its end, or nothing.
    missing : list of str
        Gets the names that aren't there; None is returned then.

    Raises
    ------
    ArgumentError
        If a tensor has another shape or dtype than the layer.
    """
    whole, size = prefix + "weight", layer.weight.size()
    kind, group, dtype = layer.weight_qtype, layer.weight_group_size, layer.weight.dtype
    generic = type(layer.weight) in (WeightQBytesTensor, WeightQBitsTensor)
    if whole in given:
        value = given[whole]
        if owned(value):
            return value
        if value.shape != size or not value.is_floating_point():
            raise ArgumentError(
                f"{whole!r} has shape {list(value.shape)} and dtype {value.dtype}; the quantized "
                f"layer asks for floating-point values of shape {list(size)}"
            )
        dense = value.detach().contiguous()
        packed, _ = quantized_weight(dense, kind, group, dtype, for_kernel=not generic, name=whole)
        return own(packed)
    names = _PARTS[kind.bits == 8]
    lacking = [f"{whole}.{name}" for name in names if f"{whole}.{name}" not in given]
    if lacking:
        missing += lacking
        return None
    parts = {name: given[f"{whole}.{name}"].detach() for name in names}
    _check_parts(layer, parts, whole)
    for name in names[1:]:
        parts[name] = parts[name].to(dtype)  # as torch copies into what is there
    weight = weight_of(parts, kind, group, size, layer.weight.stride())
    return own(weight if generic else optimized(weight))


def _check_parts(layer: Any, parts: dict[str, torch.Tensor], whole: str) -> None:
    size, group = tuple(layer.weight.size()), layer.weight_group_size
    rows, columns = size if group is None else (layer.weight.numel() // group, group)
    scale = () if rows == 1 and layer.weight_qtype.bits == 8 else (rows, 1)
    data = parts.get("_data", parts.get("_data._data"))
    bits = layer.weight_qtype.bits
    shape = size if bits == 8 else (-(-rows // (8 // bits)), columns)
    dtype = layer.weight_qtype.dtype if bits == 8 else torch.uint8
    if tuple(data.shape) != shape or data.dtype != dtype:
        raise ArgumentError(
            f"the data of {whole!r} has shape {list(data.shape)} and dtype {data.dtype}; the "
            f"layer asks for {list(shape)} and {dtype}"
        )
    if parts["_scale"].numel() != torch.Size(scale).numel():
        raise ArgumentError(
            f"the scale of {whole!r} has shape {list(parts['_scale'].shape)}; the layer asks for "
            f"{list(scale)}"
        )


# --- before anything is touched -----------------------------------------------------------------

_inside = threading.local()


def check_casts() -> None:
    """Have a module that holds quantized layers refuse a cast before its first tensor is cast.

    torch casts a module child by child, so that a layer which refuses comes too late: what lay
    before it is cast already. Modules without quantized layers are left to torch.
    """
    shipped = torch.nn.Module._apply
    if getattr(shipped, "_quantolab_asks", False):
        return

    def checked(self, fn, recurse=True):
        if getattr(_inside, "casting", False):
            return shipped(self, fn, recurse)
        _inside.casting = True
        try:
            _check_cast(self, fn)
            return shipped(self, fn, recurse)
        finally:
            _inside.casting = False

    checked._quantolab_asks = True
    torch.nn.Module._apply = checked


def check_pipeline_casts() -> None:
    """Have a pipeline refuse a cast before its first part is cast, as a module does.

    ``pipe.to`` casts part by part: text encoders are cast before a denoiser refuses. Importing
    pipelines takes memory that loading a denoiser alone doesn't need, so that is waited for.
    """
    if _PIPELINES in sys.modules:
        _check_casts_of(sys.modules[_PIPELINES])
    else:
        sys.meta_path.insert(0, _WhenImported(_PIPELINES, _check_casts_of))


_PIPELINES = "diffusers.pipelines.pipeline_utils"


class _WhenImported(importlib.abc.MetaPathFinder):
    """Does something to a module once, as soon as it has been imported."""

    def __init__(self, name: str, do: Callable[[ModuleType], None]) -> None:
        self._name, self._do = name, do

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the module's own spec, whose loader does that too; None of other modules."""
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            shipped = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                shipped(module)
                self._do(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _check_casts_of(pipelines: ModuleType) -> None:
    DiffusionPipeline = pipelines.DiffusionPipeline
    shipped = DiffusionPipeline.to
    if getattr(shipped, "_quantolab_asks", False):
        return

    @functools.wraps(shipped)
    def checked(self, *args, **kwargs):
        named = [kwargs.get(name) for name in ("dtype", "torch_dtype")]
        for asked in (a for a in (*args, *named) if isinstance(a, torch.dtype)):
            for part in self.components.values():
                if isinstance(part, torch.nn.Module):
                    _check_cast(part, lambda values, asked=asked: values.to(asked))
        return shipped(self, *args, **kwargs)

    checked._quantolab_asks = True
    DiffusionPipeline.to = checked


def _check_cast(module: torch.nn.Module, change: Any) -> None:
    weight = next(
        (w for part in module.modules() if owned(w := part._parameters.get("weight"))), None
    )
    if weight is None:
        return
    try:
        asked = change(torch.empty(0, dtype=weight.dtype)).dtype
    except Exception:
        return  # no cast; if it is a mistake it is told where it is made
    if asked != weight.dtype:
        raise ArgumentError(cast_refused(weight.dtype, asked))


def check_group_offloading() -> None:
    """Have Diffusers refuse to offload quantized layers to disk before the first is gone."""
    from diffusers.hooks import group_offloading

    shipped = group_offloading._apply_group_offloading
    if getattr(shipped, "_quantolab_asks", False):
        return

    def checked(module, config):
        to_disk = config.offload_to_disk_path is not None
        if to_disk and any(owned(p) for p in module.parameters()):
            raise UnsupportedError(DISK)
        return shipped(module, config)

    checked._quantolab_asks = True
    group_offloading._apply_group_offloading = checked


# --- adapters -----------------------------------------------------------------------------------


class _WithWeights:
    """A model whose state dict also lists quantized weights by the layer's own name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def state_dict(self) -> dict[str, torch.Tensor]:
        whole = {name: p for name, p in self._model.named_parameters() if owned(p)}
        return {**self._model.state_dict(), **whole}


def let_flux_find_weights() -> None:
    """Let ``FluxPipeline.load_lora_weights`` find quantized weights, whose shapes it looks up.

    It reads them from the model's state dict by ``LAYER.weight``; that of a quantized layer lists
    what its weight is made of, and the look-up ends in a KeyError.
    """
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

    shipped = FluxLoraLoaderMixin._maybe_expand_lora_state_dict.__func__
    if getattr(shipped, "_quantolab_asks", False):
        return

    def found(cls, transformer, lora_state_dict):
        if any(owned(p) for p in transformer.parameters()):
            transformer = _WithWeights(transformer)
        return shipped(cls, transformer, lora_state_dict)

    found._quantolab_asks = True
    FluxLoraLoaderMixin._maybe_expand_lora_state_dict = classmethod(found)


def check_adapter_names() -> None:
    """Have Diffusers refuse an adapter of which nothing would be loaded, instead of logging it.

    Every ``load_lora_weights`` of a pipeline comes through a model's ``load_lora_adapter``, which
    leaves out whatever doesn't begin with its prefix. What belongs to other components may.
    """
    from diffusers.loaders.peft import PeftAdapterMixin

    shipped = PeftAdapterMixin.load_lora_adapter
    if getattr(shipped, "_quantolab_asks", False):
        return

    @functools.wraps(shipped)
    def checked(
        self, pretrained_model_name_or_path_or_dict, prefix="transformer", hotswap=False, **kwargs
    ):
        given = pretrained_model_name_or_path_or_dict
        asks = prefix is not None and any(owned(p) for p in self.parameters())
        if asks and isinstance(given, Mapping):
            _check_adapter(self, given, prefix, kwargs.get("_pipeline"))
        before = set(getattr(self, "peft_config", ()))
        result = shipped(self, given, prefix=prefix, hotswap=hotswap, **kwargs)
        nothing = not hotswap and set(getattr(self, "peft_config", ())) == before
        if asks and nothing and not isinstance(given, Mapping):
            raise ArgumentError(
                f"no tensor of {str(given)!r} has a name that begins with '{prefix}.', and nothing "
                "was loaded; if its names are those of the model's own layers, say prefix=None"
            )
        return result

    checked._quantolab_asks = True
    PeftAdapterMixin.load_lora_adapter = checked


_COMPONENTS = ("unet", "transformer", "text_encoder")


def _check_adapter(
    model: torch.nn.Module, given: Mapping[str, Any], prefix: str, pipeline: Any
) -> None:
    others = getattr(pipeline, "components", None)

    def strange(name: str) -> bool:
        first = name.partition(".")[0]
        return first not in others if others else not first.startswith(_COMPONENTS)

    mine = [name for name in given if name.startswith(f"{prefix}.")]
    left = [name for name in given if name not in set(mine) and strange(name)]
    if not left:
        return
    said = (
        f"{len(left)} of the adapter's {len(given)} tensors, {left[0]!r} for one, have no name "
        f"that begins with '{prefix}.'"
    )
    if mine:
        warnings.warn(f"{said}; they aren't loaded", UserWarning, stacklevel=3)
        return
    raise ArgumentError(f"{said}, so that nothing would be loaded: {_fitting(model, left[0])}")


def _fitting(model: torch.nn.Module, name: str) -> str:
    """Return under which prefix a tensor of an adapter fits a model."""
    layers, steps = dict(model.named_modules()), name.partition(".lora")[0].split(".")
    for count in range(len(steps)):
        if ".".join(steps[count:]) in layers:
            prefix = ".".join(steps[:count]) or None
            return (
                f"transformer.load_lora_adapter(state_dict, prefix={prefix!r}) on the model itself "
                "does"
            )
    return f"and no layer of this {type(model).__name__} has that name without it either"
