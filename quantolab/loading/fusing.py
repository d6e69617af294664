"""A LoRA is fused into layers of backends to whose weights nothing can be added, and taken out.

peft adds to a layer's weight in place. Quanto's weights take that themselves; those of others are
made anew here: dequantized, added to, quantized again. What they were before is kept, and comes
back when just that is taken away again.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..backends import door, stored_form_of
from ..errors import ArgumentError
from ..measure.held_bytes import inner_tensors
from ..quietly import quiet_imports
from ..shapes import Layer
from ..weights import HOME, weights_of

SAID = (
    "a LoRA was fused into quantized weights: they were dequantized, added to and quantized again, "
    "so it is rounded to what {word} can hold; unfuse_lora gives back the very weights from before"
)
_KEPT = "_quantolab_before"


def let_adapters_fuse(words: Iterable[str]) -> None:
    """Have peft's layers fuse into those made here, once a process; nothing for Quanto's words."""
    others = any(weights_of(word).backend != HOME for word in words)
    if not others or importlib.util.find_spec("peft") is None:
        return
    with quiet_imports():
        from peft.tuners.lora import layer, model
    if hasattr(layer.Linear.merge, "_quantolab_asks"):
        return
    merge, unmerge = layer.Linear.merge, layer.Linear.unmerge
    layer.Linear.merge = _asking(merge, functools.partial(_merge, merge))
    layer.Linear.unmerge = _asking(unmerge, functools.partial(_unmerge, merge, unmerge))
    # Its own kind of layer for torchao warns that it can't do what is done here.
    model.dispatch_torchao = _unless_ours(model.dispatch_torchao)


def _is_ours(layer: torch.nn.Module) -> bool:
    word = getattr(layer, "quantolab_word", None)
    return word is not None and weights_of(word).backend != HOME


def _asking(shipped: Callable[..., None], ours: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(shipped)
    def asked(self: Any, *args: Any, **kwargs: Any) -> None:
        do = ours if _is_ours(self.get_base_layer()) else shipped
        return do(self, *args, **kwargs)

    asked._quantolab_asks = True  # type: ignore[attr-defined]
    return asked


def _unless_ours(shipped: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(shipped)
    def dispatch(target: Any, *args: Any, **kwargs: Any) -> Any:
        base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
        return None if _is_ours(base) else shipped(target, *args, **kwargs)

    return dispatch


# --- fusing and taking out ------------------------------------------------------------------------


def _merge(shipped: Callable[..., None], adapted: Any, *args: Any, **kwargs: Any) -> None:
    base, merged = adapted.get_base_layer(), list(adapted.merged_adapters)
    before = _Held.of(base)
    try:
        with _plain(base):
            shipped(adapted, *args, **kwargs)
    except BaseException:
        adapted.merged_adapters = merged
        raise
    names = tuple(adapted.merged_adapters[len(merged) :])
    if names:
        adapted.__dict__.setdefault(_KEPT, []).append((names, before))
        warnings.warn(SAID.format(word=base.quantolab_word), UserWarning, stacklevel=2)


def _unmerge(merge: Callable[..., None], shipped: Callable[..., None], adapted: Any) -> None:
    kept = adapted.__dict__.pop(_KEPT, [])
    while kept and _taken_back(merge, adapted, *kept.pop()):
        if not adapted.merged:
            return
    with _plain(adapted.get_base_layer()):
        shipped(adapted)


def _taken_back(
    merge: Callable[..., None], adapted: Any, names: tuple[str, ...], before: _Held
) -> bool:
    """Give a layer back what it held before some adapters, if adding them to that gives it."""
    base, merged = adapted.get_base_layer(), list(adapted.merged_adapters)
    now, rest = _Held.of(base), merged[: -len(names)]
    if tuple(merged[len(rest) :]) != names or not all(name in adapted.lora_A for name in names):
        return False
    before = before.at(base.weight.device)
    before.put(base)
    adapted.merged_adapters = []
    with _plain(base):
        merge(adapted, adapter_names=list(names))
    is_same = _Held.of(base).equals(now)
    (before if is_same else now).put(base)
    adapted.merged_adapters = rest if is_same else merged
    return is_same


@contextmanager
def _plain(layer: torch.nn.Linear) -> Iterator[None]:
    """Show a layer with the weight that it stands for; what was added is quantized afterwards."""
    if layer.weight.is_meta:
        raise ArgumentError(
            "a LoRA can't be fused into weights that are offloaded: remove the hooks first "
            "(accelerate.hooks.remove_hook_from_submodules)"
        )
    held, plain = _Held.of(layer), stored_form_of(layer).plain_weight(layer)
    shown = {"weight": plain.clone()}
    if layer.bias is not None:
        shown["bias"] = layer.bias.detach().clone()
    for name, value in shown.items():
        layer._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
    try:
        yield
        weight, bias = layer.weight.detach(), layer.bias
        if not torch.isfinite(weight).all():
            raise ArgumentError(
                "the LoRA would write NaN or infinity into a quantized weight; only finite values "
                "can be quantized"
            )
    finally:
        held.put(layer)
    if not torch.equal(weight, plain):
        made = _quantized(layer, weight)
        made.put(layer)
    layer._parameters["bias"] = bias


def _quantized(layer: torch.nn.Linear, weight: torch.Tensor) -> _Held:
    shape = Layer("", layer.in_features, layer.out_features, False)
    new, _ = door(layer.quantolab_word, "layers").quantize_linear(
        shape, layer.quantolab_word, weight, None
    )
    return _Held.of(new)


@dataclass(frozen=True)
class _Held:
    """What a layer holds."""

    parameters: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor | None]

    @classmethod
    def of(cls, layer: torch.nn.Module) -> _Held:
        return cls(dict(layer._parameters), dict(layer._buffers))

    def put(self, layer: torch.nn.Module) -> None:
        layer._parameters.update(self.parameters)
        layer._buffers.update(self.buffers)

    def at(self, device: torch.device) -> _Held:
        """Return it on a device, the same object where it lies there."""

        def moved(tensors: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
            return {
                n: t if t is None else _like(t, t.detach().to(device)) for n, t in tensors.items()
            }

        there = all(t is None or t.device == device for t in self._all().values())
        return self if there else _Held(moved(self.parameters), moved(self.buffers))

    def equals(self, other: _Held) -> bool:
        """Return whether all bits are equal."""
        one, two = (dict(_bits(held._all())) for held in (self, other))
        return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)

    def _all(self) -> dict[str, torch.Tensor | None]:
        return {**self.parameters, **self.buffers}


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(new, False) if isinstance(old, torch.nn.Parameter) else new


def _bits(tensors: dict[str, torch.Tensor | None]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in tensors.items():
        for inner, plain in () if value is None else inner_tensors(value.detach(), name):
            yield (
                inner,
                plain.contiguous().reshape(-1).view(torch.uint8),
            )  # float8 can't be compared
