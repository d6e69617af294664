"""Frozen records as plain values that JSON can hold, and back, every type checked on the way in.

The only way across a process's border and to disk. What comes in may be a stranger's.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from functools import cache, partial
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
    return cast(Record, _record(cls, values, where))


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


_Place = str | tuple[Any, str]
"""Where a value stands: a text, or a place and what follows it. It becomes a text for errors."""

_Reader = Callable[[object, _Place], Any]


def _text(where: _Place) -> str:
    return where if isinstance(where, str) else _text(where[0]) + where[1]


def _record(cls: Any, values: object, where: _Place) -> Any:
    if not isinstance(values, Mapping):
        raise _wrong(where or cls.__name__, "an object", values)
    given = {}
    for name, (read, is_needed) in _fields(cls).items():
        if name in values:
            given[name] = read(values[name], (where, f".{name}") if where else name)
        elif is_needed:
            raise ValueError(f"{_text((where, '.') if where else '')}{name} is missing")
    return cls(**given)


@cache
def _fields(cls: Any) -> dict[str, tuple[_Reader, bool]]:
    """Return what reads each field, and whether it must be given."""
    hints = get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        f.name: (_reader(hints[f.name]), f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    }


@cache  # a kind is taken apart once, however many values it has
def _reader(kind: Any) -> _Reader:
    """Return what takes a plain value as a field's type wants it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return partial(_as_one_of, tuple(k for k in inner if k is not _NONE), _NONE in inner)
    if origin is Literal:
        return partial(_as_word, inner)
    if origin is tuple:
        return partial(_as_tuple, inner)
    if origin in (dict, Mapping):
        return partial(_as_mapping, inner[1])
    if dataclasses.is_dataclass(kind):
        return partial(_record, kind)
    return partial(_as_simple, kind)


_NONE = type(None)


def _as_word(words: tuple[Any, ...], value: object, where: _Place) -> Any:
    if value not in words:
        raise _wrong(where, f"one of {', '.join(map(str, words))}", value)
    return value


def _as_mapping(kind: Any, value: object, where: _Place) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _wrong(where, "an object", value)
    read = _reader(kind)
    return {key: read(v, (where, f"[{key!r}]")) for key, v in value.items()}


def _as_one_of(kinds: tuple[Any, ...], or_none: bool, value: object, where: _Place) -> Any:
    if value is None and or_none:
        return None
    if len(kinds) == 1:
        return _reader(kinds[0])(value, where)
    for kind in kinds:
        try:
            return _reader(kind)(value, where)
        except ValueError:
            continue
    raise _wrong(where, " or ".join(getattr(k, "__name__", str(k)) for k in kinds), value)


def _as_tuple(kinds: tuple[Any, ...], value: object, where: _Place) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    if kinds[-1] is Ellipsis:
        read = _reader(kinds[0])
        return tuple([read(v, (where, f"[{n}]")) for n, v in enumerate(value)])
    if len(kinds) != len(value):
        raise _wrong(where, f"a list of {len(kinds)}", value)
    both = zip(kinds, value, strict=True)
    return tuple(_reader(kind)(v, (where, f"[{n}]")) for n, (kind, v) in enumerate(both))


def _as_simple(kind: type, value: object, where: _Place) -> Any:
    if kind is Any:
        return value
    if kind is float:
        if isinstance(value, str) and value in _INFINITE:
            return _INFINITE[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise ValueError(f"{_text(where)} is larger than any number of 64 bits") from None
        raise _wrong(where, "a number", value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(where, "a whole number", value)
    if kind is int and not -_64_BITS // 2 <= value < _64_BITS:  # type: ignore[operator]
        raise ValueError(f"{_text(where)} must be a whole number of at most 64 bits")
    if not isinstance(value, kind):
        words = {str: "a text", bool: "true or false", Path: "a text"}
        raise _wrong(where, words.get(kind, kind.__name__), value)
    return value


def _wrong(where: _Place, wanted: str, value: object) -> ValueError:
    said = repr(value)
    return ValueError(
        f"{_text(where)} must be {wanted}, not {said[:60] + '…' if len(said) > 60 else said}"
    )
