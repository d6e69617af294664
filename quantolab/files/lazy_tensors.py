"""Tensors whose values are computed when they are asked for, one at a time.

Diffusers' converters of original checkpoints rename, split, swap and join tensors, and return a
whole model at once: run on real tensors, FLUX's copies a third of the file into memory. Run on
`Recorded` tensors it copies nothing. What it would have done to each is remembered, and done
when that tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

_ASSIGNING = {
    "__setitem__",
    *(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "and", "or")),
}


class NotRecordable(Exception):
    """A function changed a tensor in place, or asked for its values; it needs real tensors."""


class Recorded(torch.Tensor):
    """A tensor of known shape and dtype, on the meta device, that remembers how to compute itself.

    Any torch function of it gives `Recorded` tensors again.
    """

    compute: Callable[[], torch.Tensor]
    """Returns the real tensor; nothing is kept afterwards."""
    sources: frozenset[str]
    """Names of the stored tensors that it is made of."""

    @classmethod
    def wrap(
        cls, like: torch.Tensor, compute: Callable[[], torch.Tensor], sources: frozenset[str]
    ) -> Recorded:
        """Return a recorded tensor with the shape and dtype of a meta tensor."""
        wrapped = torch.Tensor._make_subclass(cls, like, False)
        wrapped.compute, wrapped.sources = compute, sources
        return wrapped

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` on shapes alone and remember it for later."""
        kwargs = kwargs or {}
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Recorded)]
        try:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" in str(error):  # asked for values, which a shape doesn't have
                raise NotRecordable(str(error)) from error
            raise
        if _assigns(func):
            raise NotRecordable(f"{func.__name__} changes its input")
        tensors = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
        sources = frozenset().union(*(x.sources for x in inputs))

        def compute() -> Any:
            real_args, real_kwargs = tree_map(
                lambda x: x.compute() if isinstance(x, Recorded) else x, (args, kwargs)
            )
            return func(*real_args, **real_kwargs)

        def compute_part(number: int) -> torch.Tensor:
            return compute()[number]

        if isinstance(result, torch.Tensor):
            return cls.wrap(result, compute, sources)
        if isinstance(result, (tuple, list)) and len(tensors) == len(result):
            return type(result)(
                cls.wrap(part, partial(compute_part, i), sources) for i, part in enumerate(result)
            )
        return result  # shapes, dtypes, numbers


def _assigns(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name.endswith("__"):
        return name in _ASSIGNING
    return name.endswith("_")


def record(
    stored: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Tensor]
) -> dict[str, Recorded]:
    """Return one `Recorded` tensor for each stored one.

    Parameters
    ----------
    stored : mapping of str to torch.Tensor
        Asked for a tensor when it is needed.
    shapes : mapping of str to torch.Tensor
        The same names with meta tensors.
    """
    return {
        name: Recorded.wrap(like, partial(stored.__getitem__, name), frozenset((name,)))
        for name, like in shapes.items()
    }


class Replayed(Mapping[str, torch.Tensor]):
    """A mapping of `Recorded` tensors that gives real ones, computed anew at each access."""

    def __init__(self, recorded: Mapping[str, Recorded]) -> None:
        self._recorded = recorded

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._recorded[name].compute()

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorded)

    def __len__(self) -> int:
        return len(self._recorded)
