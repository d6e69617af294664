"""What public functions are given, checked against their own signatures before any work.

A function of the glossary is marked `public`. Its annotations are then the rules: each argument
must be what its annotation says, and a wrong one is refused by a sentence that names the argument,
what was given and what is wanted. What an argument *means* (whether a model is there, a word
known) is its function's own business.

Classes of other libraries are looked up among what is loaded: an object of a library that nobody
imported can't arrive, so nothing is imported to refuse it.
"""

from __future__ import annotations

import ast
import errno
import functools
import inspect
import itertools
import math
import numbers
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ArgumentTypeError, QuantolabError, StorageError, nearest

F = TypeVar("F", bound=Callable[..., Any])

MOST = 10_000
"""Things that one argument may list: an iterator without end is refused, not waited for."""

_SHOWN = 80  # characters of what was given
_NO = object()  # what a kind returns for a value that isn't of it


@dataclass(frozen=True)
class Kind:
    """One kind of argument: how it is called, and what takes a value of it."""

    said: str
    take: Callable[[Any], Any]
    """Returns the value, in the form that the package works with, or `_NO`."""


def public(function: F) -> F:
    """Have a function's arguments checked against its annotations, and the system's errors told."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            args, kwargs = checked_arguments(function, args, kwargs)
            return function(*args, **kwargs)
        except OSError as error:
            if isinstance(error, QuantolabError) or not _is_about_a_file(error):
                raise
            raise StorageError(f"{error.filename!r}: {error.strerror}") from error

    return checked  # type: ignore[return-value]


def checked_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, each of the kind that the signature says.

    Raises
    ------
    ArgumentError
        If the signature has no place for one, needs one that isn't there, or one is of another
        kind (`ArgumentTypeError`).
    """
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in signature.parameters]
        hint = nearest(unknown[0], signature.parameters) if unknown else ""
        raise ArgumentTypeError(f"{function.__name__}: {error}{hint}") from None
    kinds = kinds_of(function)
    for name, value in bound.arguments.items():
        if name in kinds:
            bound.arguments[name] = taken(name, value, kinds[name])
    return bound.args, bound.kwargs


@functools.cache
def kinds_of(function: Callable[..., Any]) -> dict[str, Kind]:
    """Return the kind of each parameter of a function that has an annotation."""
    parameters = inspect.signature(function).parameters.values()
    single = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: kind_of(p.annotation) for p in single if p.annotation is not p.empty}


@functools.cache
def kind_of(annotation: str) -> Kind:
    """Return the kind that an annotation names.

    Raises
    ------
    KeyError
        If it is none that is known here: then it belongs into `KINDS`.
    """
    return _kind(ast.parse(annotation, mode="eval").body)


def taken(name: str, value: Any, kind: Kind) -> Any:
    """Return an argument in the form that the package works with.

    Raises
    ------
    ArgumentTypeError
        If it isn't of its kind.
    """
    found = kind.take(value)
    if found is _NO:
        raise ArgumentTypeError(f"{name} must be {kind.said}, not {shown(value)}")
    return found


def shown(value: Any) -> str:
    """Return what was given, short: a plain value as it is written, others by their class."""
    if isinstance(value, str) and not _is_writable(value):
        return f"{ascii(value)[:_SHOWN]}, which holds what no name or text can"
    if value is None or isinstance(value, (str, bytes, int, float)):
        try:
            text = repr(value)
        except ValueError:  # an int of thousands of digits
            text = f"a {type(value).__name__} of thousands of digits"
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    if isinstance(value, (list, tuple, set)):
        inner = ", ".join(map(shown, itertools.islice(value, 2)))
        more = ", ..." if len(value) > 2 else ""
        return f"a {type(value).__name__} of {inner}{more}" if value else f"{value!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


# --- kinds ----------------------------------------------------------------------------------


def _is_writable(text: str) -> bool:
    """Whether a text can be a prompt or a name: no NUL, and UTF-8 has all of its characters."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _text(value: Any) -> Any:
    return value if isinstance(value, str) and _is_writable(value) else _NO


def _path(value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, os.PathLike):
        return _NO
    try:
        Path(value)
    except Exception:  # of whatever its class raises; of bytes
        return _NO
    return value if _text(os.fspath(value)) is not _NO else _NO


def _has_home(value: Any) -> bool:
    """Whether the user whose home a path begins with (``~name/...``) is known."""
    try:
        return bool(not isinstance(value, str) or Path(value).expanduser() or True)
    except RuntimeError:
        return False


def _whole(value: Any) -> Any:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return operator.index(value)  # of numpy's too
    return _NO


def _number(value: Any) -> Any:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return _NO
    try:
        return _NO if math.isnan(value) else float(value)
    except OverflowError:
        return _NO


def _seconds(value: Any) -> Any:
    number = _number(value)
    return number if number is not _NO and number > 0 else _NO


def _of_class(*names: str) -> Callable[[Any], Any]:
    """Take objects of classes that are named ``module:Class``, if their module is loaded."""

    def take(value: Any) -> Any:
        for name in names:
            module, _, path = name.partition(":")
            if module in sys.modules:
                cls = operator.attrgetter(path)(sys.modules[module])
                if isinstance(value, cls):
                    return value
        return _NO

    return take


def _ours(name: str) -> Callable[[Any], Any]:
    """Take objects of a class of this package, whichever room it lives in."""

    def take(value: Any) -> Any:
        bases = ((c.__name__, c.__module__.partition(".")[0]) for c in type(value).__mro__)
        return value if (name, __package__) in bases else _NO

    return take


def _truth(value: Any) -> Any:
    if isinstance(value, bool) or _of_class("numpy:bool_")(value) is not _NO:
        return bool(value)
    return _NO


def _with(method: str) -> Callable[[Any], Any]:
    return lambda value: (
        value if callable(getattr(value, method, None)) and not isinstance(value, type) else _NO
    )


_PATH = Kind("a path", _path)
_CALLABLE = Kind("a function", lambda value: value if callable(value) else _NO)
_TABLE = Kind("a table (a pandas.DataFrame)", _of_class("pandas:DataFrame"))

KINDS = {
    "None": Kind("None", lambda value: None if value is None else _NO),
    "Any": Kind("anything", lambda value: value),
    "str": Kind("text", _text),
    "bytes": Kind("bytes", lambda value: value if isinstance(value, bytes) else _NO),
    "bool": Kind("True or False", _truth),
    "int": Kind("a whole number", _whole),
    "float": Kind("a number", _number),
    "Seconds": Kind("seconds above 0", _seconds),
    "Path": _PATH,
    "os.PathLike": _PATH,
    "Recipe": Kind("a Recipe", _ours("Recipe")),
    "Comparison": Kind(
        "a Comparison (compare returns one, load_comparison reads one)",
        _ours("Comparison"),
    ),
    "Client": Kind("a distributed.Client", _of_class("distributed:Client")),
    "torch.nn.Module": Kind("a module of torch", _of_class("torch:nn.Module")),
    "DiffusionPipeline": Kind("a pipeline of Diffusers", _of_class("diffusers:DiffusionPipeline")),
    "pandas.DataFrame": _TABLE,
    "pd.DataFrame": _TABLE,
    "pandas.Series": Kind("a row of a table (a pandas.Series)", _of_class("pandas:Series")),
    "Axes": Kind("Axes of matplotlib", _of_class("matplotlib.axes:Axes")),
    "threading.Event": Kind("a threading.Event", _with("is_set")),
    "Callable": _CALLABLE,
    "Watch": _CALLABLE,
    "Told": _CALLABLE,
}
"""Every name that stands in the signature of a public function."""

Seconds = float
"""For annotations: how long, above zero."""


def _kind(node: ast.expr) -> Kind:
    if isinstance(node, ast.BinOp):
        return _either(list(_alternatives(node)))
    if isinstance(node, ast.Subscript):
        return _subscripted(ast.unparse(node.value), node.slice)
    return KINDS[ast.unparse(node)]


def _alternatives(node: ast.expr) -> Iterator[Kind]:
    if isinstance(node, ast.BinOp):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    else:
        yield _kind(node)


def _subscripted(name: str, inner: ast.expr) -> Kind:
    if name in ("Iterable", "Sequence"):
        return _several(_kind(inner))
    if name == "tuple" and isinstance(inner, ast.Tuple):
        return _fixed([_kind(part) for part in inner.elts])
    if name in ("dict", "Mapping") and isinstance(inner, ast.Tuple):
        return _mapping(*map(_kind, inner.elts))
    return KINDS[name]


def _either(kinds: list[Kind]) -> Kind:
    paths = any(kind is _PATH for kind in kinds)

    def take(value: Any) -> Any:
        if paths and not _has_home(value):
            return _NO
        found = (kind.take(value) for kind in kinds)
        return next((f for f in found if f is not _NO), _NO)

    said = list(dict.fromkeys(kind.said for kind in kinds))
    return Kind(" or ".join(filter(None, [", ".join(said[:-1]), said[-1]])), take)


def _all(found: tuple[Any, ...]) -> Any:
    return _NO if any(f is _NO for f in found) else found


def _several(kind: Kind) -> Kind:
    """Take anything that lists values of a kind; iterators are read once, to a tuple."""

    def take(value: Any) -> Any:
        keyed = hasattr(value, "keys")  # dicts and tables: what they iterate over is a surprise
        if keyed or isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            return _NO
        try:
            values = tuple(itertools.islice(value, MOST + 1))
        except Exception:  # whatever a stranger's iterator raises
            return _NO
        found = tuple(kind.take(v) for v in values)
        return _NO if len(found) > MOST else _all(found)

    return Kind(f"a list (each {kind.said})", take)


def _fixed(kinds: list[Kind]) -> Kind:
    """Take as many values as there are kinds: a pair, for example."""

    def take(value: Any) -> Any:
        if not isinstance(value, (tuple, list)) or len(value) != len(kinds):
            return _NO
        found = tuple(kind.take(v) for kind, v in zip(kinds, value, strict=True))
        return _all(found)

    return Kind(f"({', '.join(kind.said for kind in kinds)})", take)


def _mapping(key: Kind, inner: Kind) -> Kind:
    """Take a dict from one kind to another."""

    def take(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return _NO
        found = {key.take(k): inner.take(v) for k, v in value.items()}
        return found if _all((*found, *found.values())) is not _NO else _NO

    return Kind(f"a dict (of {key.said} to {inner.said})", take)


# --- the system's own errors ----------------------------------------------------------------

_ABOUT_FILES = {
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOENT, errno.EEXIST, errno.EINVAL,
    errno.EFBIG, errno.EIO, errno.ENOTEMPTY,
}  # fmt: skip


def _is_about_a_file(error: OSError) -> bool:
    """Whether the system refused a file or folder that the error names."""
    return error.errno in _ABOUT_FILES and error.filename is not None
