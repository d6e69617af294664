"""Frozen records as plain values that JSON can hold, and back, every type checked on the way in.

The only way across a process's border and to disk. What comes in may be a stranger's.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_LATER = "later"
LATER = {_LATER: True}
"""Metadata of a field that came after others were written to files."""

_64_BITS = 1 << 64  # seeds reach that far, and nothing that is counted goes beyond
_INFINITE = {"inf": math.inf, "-inf": -math.inf}  # strict JSON has no such numbers


def to_dict(record: Any) -> dict[str, Any]:
    """Return a record as plain values: dictionaries, lists, texts, numbers, booleans, None.

    Infinity (the PSNR of identical pictures) becomes the word ``"inf"``. Fields marked `LATER` are
    left out where they are empty, so that what earlier versions wrote is written as it was.

    Examples
    --------
    >>> from quantolab.records import Timing
    >>> to_dict(Timing((0.5,)))
    {'samples': [0.5], 'warmup': [], 'other_load': None}
    """
    return {
        f.name: _plain(getattr(record, f.name))
        for f in dataclasses.fields(record)
        if getattr(record, f.name) or _LATER not in f.metadata
    }


def from_dict(cls: type[Record], values: object, where: str = "") -> Record:
    """Return the record that `to_dict` wrote; keys of later versions are ignored.

    Parameters
    ----------
    cls : type
        A dataclass whose fields have types of the plain kind: ``str, int, float, bool, Path``,
        ``Literal``, other such records, tuples and dictionaries of these, and ``| None``.
    values : object
        Plain values.
    where : str
        Where they stand, for the message.

    Raises
    ------
    ValueError
        If something is missing or has another type, with the name of its place; or what the
        record itself raises.
    """
    if not isinstance(values, Mapping):
        raise _wrong(where or cls.__name__, "an object", values)
    given = {}
    fields = _fields(cast(Hashable, cls))  # mypy takes a type variable's type for unhashable
    for name, (kind, is_needed) in fields.items():
        place = f"{where}.{name}" if where else name
        if name in values:
            given[name] = _as(kind, values[name], place)
        elif is_needed:
            raise ValueError(f"{place} is missing")
    return cls(**given)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Return type of each field, and whether it must be given."""
    hints = get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    }


def _as(kind: Any, value: object, where: str) -> Any:
    """Return a plain value as a field's type wants it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _as_one_of(inner, value, where)
    if origin is Literal:
        if value not in inner:
            raise _wrong(where, f"one of {', '.join(map(str, inner))}", value)
        return value
    if origin is tuple:
        return _as_tuple(inner, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(where, "an object", value)
        return {key: _as(inner[1], v, f"{where}[{key!r}]") for key, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    return _as_simple(kind, value, where)


def _as_one_of(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return _as(kinds[0], value, where)
    for kind in kinds:
        try:
            return _as(kind, value, where)
        except ValueError:
            continue
    raise _wrong(where, " or ".join(getattr(k, "__name__", str(k)) for k in kinds), value)


def _as_tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise _wrong(where, f"a list of {len(kinds)}", value)
    return tuple(
        _as(kind, v, f"{where}[{n}]") for n, (kind, v) in enumerate(zip(kinds, value, strict=True))
    )


def _as_simple(kind: type, value: object, where: str) -> Any:
    if kind is Any:
        return value
    if kind is float:
        if isinstance(value, str) and value in _INFINITE:
            return _INFINITE[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise ValueError(f"{where} is larger than any number of 64 bits") from None
        raise _wrong(where, "a number", value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(where, "a whole number", value)
    if kind is int and not -_64_BITS // 2 <= value < _64_BITS:  # type: ignore[operator]
        raise ValueError(f"{where} must be a whole number of at most 64 bits")
    if not isinstance(value, kind):
        words = {str: "a text", bool: "true or false", Path: "a text"}
        raise _wrong(where, words.get(kind, kind.__name__), value)
    return value


def _wrong(where: str, wanted: str, value: object) -> ValueError:
    said = repr(value)
    return ValueError(
        f"{where} must be {wanted}, not {said[:60] + '…' if len(said) > 60 else said}"
    )
