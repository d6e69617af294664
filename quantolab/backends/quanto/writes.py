"""A write, copy or move of a quantized weight takes effect, or is refused; never silently neither.

Quanto's tensors hand every operation that they don't know to a dequantized copy. For one that
writes, the copy is changed and dropped, and the weight stays as it was. torch says of each of its
operations which arguments it writes, so all of them are treated alike here: dequantize, write,
check, quantize again. Only weights that quantolab made, or their copies, are treated so (`own`
marks them): those of others in the same process behave as Quanto ships them.

What is written through a view of a weight (``weight[0].zero_()``) is written to it: `views`.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils.dlpack
from optimum.quanto import QTensor, WeightQBitsTensor, WeightQBytesTensor
from optimum.quanto.tensor.qtensor import qfallback
from torch.utils._pytree import tree_flatten, tree_map

from ...errors import ArgumentError
from ...recipes import COMPUTE_DTYPES
from .quantizing import quantized_weight
from .views import NO_MEMORY, Values, WeightView, is_view, ordinary, read_only, written

SAID = (
    "a quantized weight was written to: it was dequantized, changed and quantized again, so the "
    "change is rounded to what {kind} can hold; taking away what was added last (unfuse_lora) "
    "gives back the very weights from before"
)

CAST = (
    "quantized weights compute in {now} and can't be cast to {asked}: {cure}turn it back first "
    "with dequantize(module)"
)
_CURE = (
    "load the model in that dtype, load_saved(folder, dtype={word!r}) or load(model, recipe, "
    "dtype={word!r}), or "
)

_MARK = "_quantolab"
_MOST_KEPT = 8  # additions that can be taken back, the last ones
_ADDS, _TAKES, _SETS = torch.ops.aten.add_, torch.ops.aten.sub_, torch.ops.aten.set_
_COPIES = {
    torch.ops.aten.clone: torch.clone,
    torch.ops.aten.pin_memory: torch.Tensor.pin_memory,
    torch.ops.aten._pin_memory: torch.Tensor.pin_memory,
}


class History:
    """What all that stand for one weight share: what it was before its last additions.

    `before` holds plain tensors, `writes` counts whatever has changed the weight.
    """

    def __init__(self) -> None:
        self.before: list[list[torch.Tensor]] = []
        self.writes = 0


def own(weight: torch.Tensor, history: History | None = None) -> torch.Tensor:
    """Mark a weight as one that takes writes, and return it."""
    setattr(weight, _MARK, history or History())
    return weight


def owned(value: object) -> bool:
    """Return whether a value is a weight that quantolab made."""
    return isinstance(value, QTensor) and _MARK in value.__dict__


def leaves(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a quantized weight is made of."""
    found = []
    for name in weight.__tensor_flatten__()[0]:
        inner = getattr(weight, name)
        found += leaves(inner) if hasattr(inner, "__tensor_flatten__") else [inner]
    return found


def mapped(weight: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return a weight of the same class around changed plain tensors."""
    names, meta = weight.__tensor_flatten__()
    inner = {}
    for name in names:
        part = getattr(weight, name)
        plain = not hasattr(part, "__tensor_flatten__")
        inner[name] = change(part) if plain else mapped(part, change)
    return type(weight).__tensor_unflatten__(inner, meta, weight.size(), weight.stride())


# --- writes -----------------------------------------------------------------------------------


def _dispatch(op: Any, args: tuple, kwargs: dict, shipped: Callable[[], Any]) -> Any:
    """Do one of torch's operations of which a weight of ours is an argument."""
    packet, first = op.overloadpacket, args[0] if args else None
    if op._schema.is_mutable:
        return _write_through(op, args, kwargs, shipped)
    if not owned(first):
        return shipped()
    if packet is torch.ops.aten.detach:
        # The same plain tensors: a write through `.data` is a write to the weight.
        with ordinary():
            return own(mapped(first, lambda t: t), getattr(first, _MARK))
    if packet in (torch.ops.aten._to_copy, torch.ops.aten.to):
        return _moved(first, kwargs, shipped)
    if packet in _COPIES:
        return own(mapped(first, _COPIES[packet]))
    if packet is torch.ops.aten.empty_like and kwargs.get("dtype") in (None, first.dtype):
        device = kwargs.get("device") or first.device
        return own(mapped(first, lambda t: torch.empty_like(t, device=device)))
    if is_view(op) and not _is_traced(first) and not getattr(_inside, "product", False):
        with ordinary():
            return _viewed(first, op, args, kwargs)
    return shipped()


_inside = threading.local()


def _is_traced(weight: torch.Tensor) -> bool:
    """Whether a graph is being made: a weight's tensors are stand-ins then."""
    return type(leaves(weight)[0]) is not torch.Tensor


def _viewed(weight: torch.Tensor, op: Any, args: tuple, kwargs: dict) -> Any:
    history = getattr(weight, _MARK)

    def write(dense: torch.Tensor, what: str) -> Callable[[], None]:
        new = _requantized(weight, dense, what)
        return lambda: _put(weight, new, keep=False)

    values = Values(weight, lambda: history.writes, write)
    return values.views_in(qfallback(op, values.dense, *args[1:], **kwargs))


def _moved(weight: torch.Tensor, kwargs: dict, shipped: Callable[[], Any]) -> torch.Tensor:
    asked, device = kwargs.get("dtype"), kwargs.get("device")
    if asked not in (None, weight.dtype):
        raise ArgumentError(cast_refused(weight.dtype, asked))
    if device is not None and torch.device(device).type == "meta":
        return own(mapped(weight, lambda t: t.to("meta")))  # nothing to pack anew
    return own(shipped())


def cast_refused(now: torch.dtype, asked: torch.dtype) -> str:
    """Return the sentence with which a cast is refused."""
    names = (str(now).removeprefix("torch."), str(asked).removeprefix("torch."))
    cure = _CURE.format(word=names[1]) if names[1] in COMPUTE_DTYPES else ""
    return CAST.format(now=names[0], asked=names[1], cure=cure)


def _write_through(op: Any, args: tuple, kwargs: dict, shipped: Callable[[], Any]) -> Any:
    values = written(op, args, kwargs)
    targets = [value for value in values if owned(value)]
    if not targets and op.overloadpacket is _SETS:
        raise ArgumentError(NO_MEMORY.format(what=str(op)))
    if not targets:
        return shipped()
    if any(isinstance(value, WeightView) for value in values):
        raise ArgumentError(f"{op} was given quantized weights and views of such; one kind at once")
    if op.overloadpacket is torch.ops.aten.record_stream:
        for leaf in leaves(args[0]):
            leaf.record_stream(*args[1:])
        return None
    if op.overloadpacket is _TAKES and _taken_back(targets[0], args[1], kwargs):
        return targets[0]
    dense = {id(target): target.dequantize() for target in targets}

    def plain(value: Any) -> Any:
        if isinstance(value, QTensor):
            return dense[id(value)] if id(value) in dense else value.dequantize()
        return value

    result = op(*tree_map(plain, args), **tree_map(plain, kwargs))
    sources = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, QTensor)]
    new = [_as_written(target, dense[id(target)], sources, str(op)) for target in targets]
    for target, weight in zip(targets, new, strict=True):
        _put(target, weight, keep=op.overloadpacket is _ADDS)
    by_dense = {id(dense[id(target)]): target for target in targets}
    return tree_map(lambda value: by_dense.get(id(value), value), result)


def _requantized(weight: torch.Tensor, dense: torch.Tensor, what: str) -> torch.Tensor:
    """Return what a weight becomes by a write, the weight itself untouched.

    Raises
    ------
    ArgumentError
        If shape, dtype or device would change, or values aren't finite.
    """
    for name in ("shape", "dtype", "device"):
        asked, has = getattr(dense, name), getattr(weight, name)
        if asked != has:
            if name == "dtype":
                raise ArgumentError(cast_refused(has, asked))
            raise ArgumentError(
                f"{what} would give a quantized weight the {name} {_text(asked)}; it has "
                f"{_text(has)} and keeps it"
            )
    if dense.is_meta:
        return mapped(weight, lambda t: t)
    if not torch.isfinite(dense).all():
        raise ArgumentError(
            f"{what} would write NaN or infinity into a quantized weight; only finite values can "
            "be quantized"
        )
    if torch.equal(dense, weight.dequantize()):
        return mapped(weight, lambda t: t)
    warnings.warn(SAID.format(kind=weight.qtype.name), UserWarning, stacklevel=6)
    return _quantized_like(weight, dense)


def _as_written(
    weight: torch.Tensor, dense: torch.Tensor, sources: list[torch.Tensor], what: str
) -> torch.Tensor:
    """Return what a weight becomes by a write: a very copy where a weight of its kind was copied.

    Quantizing anew what was quantized before may round it to other values.
    """
    for source in sources:
        if source is not weight and _fits(source, weight) and not dense.is_meta:
            values = source.dequantize()
            if (values.shape, values.dtype) == (dense.shape, dense.dtype) and torch.equal(
                values, dense
            ):
                return mapped(source, torch.clone)
    return _requantized(weight, dense, what)


def _fits(source: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the plain tensors of one weight can stand in another."""
    if type(source) is not type(weight) or source.qtype != weight.qtype:
        return False
    parts = [[(t.shape, t.dtype, t.device) for t in leaves(one)] for one in (source, weight)]
    return parts[0] == parts[1]


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)


def _quantized_like(weight: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    generic = type(weight) in (WeightQBytesTensor, WeightQBitsTensor)
    group = getattr(weight, "_group_size", None)
    with torch.no_grad():
        dense = dense.detach().contiguous()
        new, _ = quantized_weight(dense, weight.qtype, group, weight.dtype, for_kernel=not generic)
    return new


def _put(weight: torch.Tensor, new: torch.Tensor, *, keep: bool) -> None:
    """Give a weight, and all its views, the plain tensors of another."""
    held, history = leaves(weight), getattr(weight, _MARK)
    fresh = leaves(new)
    if all(a is b for a, b in zip(held, fresh, strict=True)):
        return
    if not keep:
        history.before.clear()
    elif not held[0].is_meta:
        shared = held[0].is_shared()
        history.before.append([t.clone() if shared else t.detach() for t in held])
        del history.before[:-_MOST_KEPT]
    history.writes += 1
    _set_leaves(held, fresh)


def _set_leaves(held: list[torch.Tensor], fresh: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for old, value in zip(held, fresh, strict=True):
            # Memory that other processes see is written; else it may be a file's, and is replaced.
            if old.device.type == "cpu" and old.is_shared() and old.shape == value.shape:
                old.copy_(value)
            else:
                old.data = value.detach()


def _taken_back(weight: torch.Tensor, other: Any, kwargs: dict) -> bool:
    """Give a weight back the values from before, if what is taken away was added to just them."""
    history = getattr(weight, _MARK)
    if not history.before:
        return False
    values = iter(history.before[-1])
    before = mapped(weight, lambda t: next(values))
    other = other.dequantize() if isinstance(other, QTensor) else other
    dense = before.dequantize().add_(other, **kwargs)
    now = _quantized_like(weight, dense)
    if not all(_same(a, b) for a, b in zip(leaves(now), leaves(weight), strict=True)):
        return False
    history.writes += 1
    _set_leaves(leaves(weight), history.before.pop())
    return True


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Raw bytes: float8 can't be compared everywhere.
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return torch.equal(*raw)


# --- what torch does by a tensor's own methods --------------------------------------------------


def _set_data(weight: torch.Tensor, value: torch.Tensor) -> None:
    """``weight.data = value``."""
    if not isinstance(value, QTensor):
        new = _requantized(weight, value.detach(), ".data =")
        _put(weight, new, keep=True)
        return
    if value.qtype != weight.qtype or value.shape != weight.shape:
        raise ArgumentError(
            f".data = of a {weight.qtype.name} weight of shape {list(weight.shape)} was given a "
            f"{value.qtype.name} weight of shape {list(value.shape)}; only an equal kind and shape "
            "fit"
        )
    if value.dtype != weight.dtype:
        raise ArgumentError(cast_refused(weight.dtype, value.dtype))
    if type(value) is type(weight) and value.device == weight.device:
        _put(weight, value, keep=not _unwritten(value))
        return
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.data.__set__(weight, value)
    weight.__class__ = type(value)
    for name in value.__tensor_flatten__()[0]:
        setattr(weight, name, getattr(value, name))
    getattr(weight, _MARK).before.clear()
    getattr(weight, _MARK).writes += 1


def _unwritten(value: torch.Tensor) -> bool:
    """Whether nothing was added to a weight: moving it there and back is no change to keep."""
    return not owned(value) or not getattr(value, _MARK).before


def _set_item(weight: torch.Tensor, index: Any, value: Any) -> None:
    """``weight[index] = value``."""
    dense = weight.dequantize()
    quantized = isinstance(value, QTensor)
    dense[index] = value.dequantize() if quantized else value
    new = _as_written(weight, dense, [value] if quantized else [], "weight[...] =")
    _put(weight, new, keep=False)


def _by_python(method: Callable) -> Callable:
    """Return what does a method by values, which torch would do past all its operations."""

    def done(weight: torch.Tensor, *args: Any) -> torch.Tensor:
        dense = weight.dequantize()
        method(dense, *(a.dequantize() if isinstance(a, QTensor) else a for a in args))
        _put(weight, _requantized(weight, dense, method.__name__), keep=False)
        return weight

    return done


def _refuses_memory(name: str) -> Callable:
    def refuse(weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raise ArgumentError(NO_MEMORY.format(what=name))

    return refuse


def _share(weight: torch.Tensor) -> torch.Tensor:
    for leaf in leaves(weight):
        leaf.share_memory_()
    return weight


_METHODS: dict[Any, Callable] = {
    torch.Tensor.data.__set__: _set_data,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.apply_: _by_python(torch.Tensor.apply_),
    torch.Tensor.map2_: _by_python(torch.Tensor.map2_),
    torch.Tensor.storage: _refuses_memory("storage()"),
    torch.Tensor.__dlpack__: _refuses_memory("__dlpack__()"),
    torch.Tensor.share_memory_: _share,
    torch.Tensor.is_shared: lambda weight: leaves(weight)[0].is_shared(),
    torch.Tensor.is_pinned: lambda weight, *_: leaves(weight)[0].is_pinned(),
    # A wrapper has no memory of its own; that of its data tells it from other weights.
    torch.Tensor.data_ptr: lambda weight: leaves(weight)[0].data_ptr(),
}


# --- copies -------------------------------------------------------------------------------------


def _deepcopy(weight: torch.Tensor, memo: dict) -> torch.Tensor:
    if id(weight) not in memo:
        memo[id(weight)] = _like(weight, own(mapped(weight, torch.clone)))
    return memo[id(weight)]


def _like(weight: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    is_parameter = isinstance(weight, torch.nn.Parameter)
    return torch.nn.Parameter(new, weight.requires_grad) if is_parameter else new


class _Plain(NamedTuple):
    values: torch.Tensor
    dtype: torch.dtype


def _packed(weight: torch.Tensor) -> tuple:
    """Return a wrapper as plain tensors and text, for pickle."""
    names, meta = weight.__tensor_flatten__()
    parts = {}
    for name in names:
        inner = getattr(weight, name)
        if hasattr(inner, "__tensor_flatten__"):
            parts[name] = _packed(inner)
        else:  # as bytes: pickle knows no float8
            floats = inner.is_floating_point() and inner.itemsize == 1
            parts[name] = _Plain(inner.view(torch.uint8) if floats else inner, inner.dtype)
    return type(weight).__name__, meta, parts


def unpickled(packed: tuple, parameter: bool, requires_grad: bool) -> torch.Tensor:
    """Return the weight that was pickled."""
    weight = own(_unpacked(packed))
    return torch.nn.Parameter(weight, requires_grad) if parameter else weight


def _unpacked(packed: tuple) -> torch.Tensor:
    name, meta, parts = packed
    inner = {
        n: p.values.view(p.dtype) if isinstance(p, _Plain) else _unpacked(p)
        for n, p in parts.items()
    }
    return _classes()[name].__tensor_unflatten__(inner, meta, None, None)


def _classes() -> dict[str, Any]:
    from optimum.quanto.tensor.packed import PackedTensor
    from optimum.quanto.tensor.weights.tinygemm import TinyGemmPackedTensor

    packed = [PackedTensor, TinyGemmPackedTensor]
    packed += [c for c in torch.Tensor.__subclasses__() if c.__name__.endswith("PackedTensor")]
    return {c.__name__: c for c in [*_kinds(), *packed] if c.__module__.startswith("optimum.")}


# --- installing ---------------------------------------------------------------------------------


def install() -> None:
    """Have Quanto's weight classes ask here first, once a process; unmarked weights don't."""
    for kind in _kinds():
        if "_quantolab_asks" in kind.__dict__:
            continue
        kind._quantolab_asks = True
        if "__torch_dispatch__" in kind.__dict__:
            kind.__torch_dispatch__ = _asking_dispatch(kind.__dict__["__torch_dispatch__"].__func__)
        if "__torch_function__" in kind.__dict__:
            kind.__torch_function__ = _asking_function(kind.__dict__["__torch_function__"].__func__)
        if "__new__" in kind.__dict__:
            _take_a_tensor(kind)
    for kind in (WeightQBytesTensor, WeightQBitsTensor):
        _copy_ours(kind)
    for place in (torch, torch.utils.dlpack):
        if not hasattr(place.to_dlpack, "_quantolab_asks"):
            place.to_dlpack = _asking_export(place.to_dlpack)


def _asking_export(shipped: Callable) -> Callable:
    """Return `to_dlpack`, which is no operation, with a refusal of what has no memory to give."""

    @functools.wraps(shipped)
    def export(tensor: torch.Tensor) -> Any:
        if owned(tensor) or isinstance(tensor, WeightView):
            raise ArgumentError(NO_MEMORY.format(what="to_dlpack"))
        return shipped(tensor)

    export._quantolab_asks = True
    return export


def _kinds() -> list[Any]:
    """Return Quanto's classes of quantized weights."""
    found: list[Any] = []
    for kind in (WeightQBytesTensor, WeightQBitsTensor):
        found += [kind, *kind.__subclasses__()]
    return found


def _asking_dispatch(shipped: Callable) -> Any:
    def dispatch(cls, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(owned(value) for value in tree_flatten((args, kwargs))[0]):
            _check_traced(op, args, kwargs)
            return shipped(cls, op, types, args, kwargs)
        return _dispatch(op, args, kwargs, lambda: shipped(cls, op, types, args, kwargs))

    return classmethod(dispatch)


def _check_traced(op: Any, args: tuple, kwargs: dict) -> None:
    """Refuse a write while a graph is made: its stand-ins of weights know nothing of writes."""
    if not op._schema.is_mutable:
        return
    targets = [value for value in written(op, args, kwargs) if isinstance(value, QTensor)]
    if any(_is_traced(target) for target in targets):
        raise ArgumentError(
            f"{op} would write into a quantized weight inside a compiled graph; write outside of "
            "what is compiled, or dequantize(module) first"
        )


def _asking_function(shipped: Callable) -> Any:
    def function(cls, func, types, args=(), kwargs=None):
        # First, and without a look at the rest: graphs are traced through here.
        if func is torch.nn.functional.linear:
            if torch.compiler.is_compiling():
                return shipped(cls, func, types, args, kwargs)
            return _product(lambda: shipped(cls, func, types, args, kwargs))
        if func in _METHODS and owned(args[0]):
            return _METHODS[func](*args, **(kwargs or {}))
        return shipped(cls, func, types, args, kwargs)

    return classmethod(function)


def _product(shipped: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Multiply; what Quanto turns for it is nobody else's, and stays as quick as it is."""
    _inside.product = True
    try:
        return shipped()
    finally:
        _inside.product = False


def _take_a_tensor(kind: Any) -> None:
    """Let a class be called with a weight, as `torch.nn.Parameter` is; accelerate does so."""
    shipped_new, shipped_init = kind.__new__, kind.__init__

    def new(cls, *args, **kwargs):
        if args and owned(args[0]):
            return torch.nn.Parameter(args[0], kwargs.get("requires_grad", False))
        return shipped_new(cls, *args, **kwargs)

    def init(self, *args, **kwargs):
        if not (args and owned(args[0])):
            shipped_init(self, *args, **kwargs)

    kind.__new__, kind.__init__ = staticmethod(new), init


def _copy_ours(kind: Any) -> None:
    shipped_copy, shipped_reduce = kind.__deepcopy__, kind.__reduce_ex__
    shipped_numpy = kind.numpy

    def deepcopy(self, memo):
        return _deepcopy(self, memo) if owned(self) else shipped_copy(self, memo)

    def reduce(self, protocol):
        if not owned(self):
            return shipped_reduce(self, protocol)
        parameter = isinstance(self, torch.nn.Parameter)
        return unpickled, (_packed(self), parameter, self.requires_grad)

    def numpy(self):
        return read_only(shipped_numpy(self)) if owned(self) else shipped_numpy(self)

    kind.__deepcopy__, kind.__reduce_ex__, kind.numpy = deepcopy, reduce, numpy
