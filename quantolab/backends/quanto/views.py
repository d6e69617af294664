"""Views of a quantized weight: what is written through one is written to the weight.

No part of a quantized weight exists unquantized, so a view looks into a copy of its values. torch
says of each of its operations whether its result is a view; those of a weight remember whose they
are: a write changes the copy and quantizes the weight anew, or is refused; and the copy is read
anew where the weight has changed since. Everything else is done as with plain tensors.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from ...errors import ArgumentError

NO_MEMORY = (
    "{what} would hand on a quantized weight's memory, and there are no plain values in it: "
    "dequantize() gives a copy of them, and copy_() writes one back"
)


@functools.cache
def is_view(op: Any) -> bool:
    """Return whether an operation's result shares its argument's memory, by its schema."""
    aliases = [value.alias_info for value in op._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def written(op: Any, args: tuple, kwargs: dict) -> list[Any]:
    """Return the values into which an operation writes, by its schema."""
    values: list[Any] = []
    for number, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            values += tree_flatten(given)[0]
    return values


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Make ordinary tensors in inference mode too: only they can be views of a weight."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


class Values:
    """A copy of a weight's values, which its views look into.

    Parameters
    ----------
    weight : torch.Tensor
        The quantized weight.
    changes : callable
        How often it was written to.
    write : callable
        Quantizes values, checks them, and returns what puts them into the weight.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        changes: Callable[[], int],
        write: Callable[[torch.Tensor, str], Callable[[], None]],
    ) -> None:
        self.weight, self.changes, self.write = weight, changes, write
        self.dense, self.seen = weight.dequantize(), changes()

    def read(self) -> None:
        """Take the weight's values, rounded as they are there."""
        if self.weight.device == self.dense.device:
            self.dense.copy_(self.weight.dequantize())
            self.seen = self.changes()

    def follow(self) -> None:
        """Take the weight's values if they have changed."""
        if self.seen != self.changes():
            self.read()

    def views_in(self, result: Any) -> Any:
        """Return an operation's result with what shares the copy's memory as views."""
        memory = self.dense.untyped_storage().data_ptr()

        def seen(value: Any) -> Any:
            if type(value) is not torch.Tensor or value.untyped_storage().data_ptr() != memory:
                return value
            return WeightView.into(value, self)

        return tree_map(seen, result)


class WeightView(torch.Tensor):
    """A view of a quantized weight; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    _plain: torch.Tensor
    _values: Values

    @staticmethod
    def into(plain: torch.Tensor, values: Values) -> WeightView:
        """Return a view with the memory of a plain one."""
        view = torch.Tensor._make_subclass(WeightView, plain)
        view._plain, view._values = plain, values
        return view

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        """Do one of torch's operations of which a view is an argument."""
        with ordinary():
            return cls._done(op, args, kwargs or {})

    @classmethod
    def _done(cls, op: Any, args: tuple, kwargs: dict) -> Any:
        views = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, WeightView)]
        for view in views:
            view._values.follow()
        targets = [v for v in written(op, args, kwargs) if isinstance(v, WeightView)]
        if not targets and op.overloadpacket is torch.ops.aten.set_:
            raise ArgumentError(NO_MEMORY.format(what=str(op)))
        if targets and op.overloadpacket is not torch.ops.aten.record_stream:
            return _write(op, args, kwargs, targets)
        result = op(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        if is_view(op) and isinstance(args[0], WeightView):
            return args[0]._values.views_in(result)
        return result

    def _now(self) -> torch.Tensor:
        self._values.follow()
        return self._plain

    def numpy(self, *, force: bool = False) -> Any:
        """Return the values as an array that can't be written to."""
        return read_only(self._now().numpy(force=force))

    def tolist(self) -> Any:
        """Return the values as numbers."""
        return self._now().tolist()

    def apply_(self, function: Callable) -> WeightView:
        """Replace each value by a function's; what is written reaches the weight."""
        return self.copy_(self._now().clone().apply_(function))

    def map2_(self, one: torch.Tensor, other: torch.Tensor, function: Callable) -> WeightView:
        """Replace each value by a function's of three; what is written reaches the weight."""
        return self.copy_(self._now().clone().map2_(_plain(one), _plain(other), function))

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ArgumentError(NO_MEMORY.format(what="this call"))

    # What is written there by others would reach no weight.
    untyped_storage = storage = __dlpack__ = share_memory_ = _refuse

    def is_shared(self) -> bool:
        """Return that no other process sees the values."""
        return False

    def __deepcopy__(self, memo):
        """Return a plain copy, which is nobody's view."""
        return copy.deepcopy(self._now(), memo)

    def __reduce_ex__(self, protocol):
        """Pickle the values."""
        return self._now().clone().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents=None):
        """Show the values."""
        return repr(self._now())


def read_only(array: Any) -> Any:
    """Return a numpy array that refuses writes, which wouldn't reach the weight."""
    array.setflags(write=False)
    return array


def _plain(value: Any) -> Any:
    return value._plain if isinstance(value, WeightView) else value


def _write(op: Any, args: tuple, kwargs: dict, targets: list[WeightView]) -> Any:
    """Write into the copies, then into the weights; on any error all are as before."""
    stands = {id(view): torch.ops.aten.alias(view._plain) for view in targets}
    changed = list({id(view._values): view._values for view in targets}.values())

    def stand(value: Any) -> Any:
        return stands.get(id(value), _plain(value))

    try:
        result = op(*tree_map(stand, args), **tree_map(stand, kwargs))
        for view in targets:
            _check_unmoved(stands[id(view)], view._plain, str(op))
        puts = [values.write(values.dense, str(op)) for values in changed]
    except BaseException:
        for values in changed:
            values.read()
        raise
    for values, put in zip(changed, puts, strict=True):
        put()
        values.read()
    by_stand = {id(stands[id(view)]): view for view in targets}
    return tree_map(lambda value: by_stand.get(id(value), value), result)


def _check_unmoved(after: torch.Tensor, before: torch.Tensor, what: str) -> None:
    if _place(after) != _place(before):
        raise ArgumentError(
            f"{what} would make a view of a quantized weight, of shape {list(before.shape)}, look "
            "elsewhere; only values can be written through it: clone() it first"
        )


def _place(tensor: torch.Tensor) -> tuple:
    memory = tensor.untyped_storage().data_ptr()
    return memory, tensor.shape, tensor.stride(), tensor.storage_offset()
