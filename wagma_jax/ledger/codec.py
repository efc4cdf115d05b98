"""Entries as JSON objects and back: derived from the fields and types of ``entries``, so that it exists only once.

No field can be written under one name and read under another.
"""

import itertools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from wagma_jax.ledger.entries import KINDS, VERSION, Entry, Round, Start, Swap, moments

_DIGITS = 7  # of seconds, after the point


class FormatError(ValueError):
    """The ledger has the format of another version of the library."""


def encode(entry: Entry) -> dict[str, Any]:
    """The JSON object of an entry's line; seconds are rounded to 0.1 microseconds."""
    codecs = _CODECS[type(entry)]
    return {"kind": entry.kind} | {
        name: codec.write(value) for (name, codec), value in zip(codecs.items(), entry, strict=True)
    }


def decode(line: Mapping[str, Any]) -> Entry:
    """The entry of a line.

    Args:
        line: Its JSON object.

    Raises:
        FormatError: It is a start of another format.
        ValueError: It is no entry; the message says why.
    """
    name = line.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"unknown kind {name!r}")
    if kind is Start and line.get("version") != VERSION:
        raise FormatError(
            f"expected a ledger of format {VERSION}, got format {line.get('version')!r}: read it with the wagma_jax "
            "that wrote it, and let runs of different versions write to different folders"
        )
    values = {}
    for name, codec in _CODECS[kind].items():
        if name not in line:
            raise ValueError(f"no field {name!r}")
        try:
            values[name] = codec.read(line[name])
        except (TypeError, ValueError):
            raise ValueError(f"expected {codec.name} in the field {name!r}, got {line[name]!r}") from None
    entry = kind(**values)
    names = moments(kind)
    if not all(values[a] <= values[b] for a, b in itertools.pairwise(names)):
        raise ValueError(f"{', '.join(names)} do not ascend")
    if isinstance(entry, Start | Round | Swap):
        entry.check()
    return entry


class _Codec(NamedTuple):
    """How the values of a type are written and read; ``read`` raises TypeError for what is not of the type."""

    name: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _codec(hint: Any) -> _Codec:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _codec(parts[0])
    if origin is Literal:
        return _Codec(" or ".join(map(repr, parts)), _unchanged, lambda value: _expect(value in parts, value))
    if origin is types.UnionType:
        inner, none = _codec(parts[0]), parts[1]
        assert none is types.NoneType, hint
        return _Codec(
            f"{inner.name} or null",
            lambda value: None if value is None else inner.write(value),
            lambda value: None if value is None else inner.read(value),
        )
    if origin is tuple:
        inner = _codec(parts[0])
        return _Codec(
            f"a list, each item {inner.name},",
            lambda value: [inner.write(item) for item in value],
            lambda value: tuple(inner.read(item) for item in _expect(isinstance(value, list), value)),
        )
    if origin is dict:  # of ranks or names: JSON has only strings for both
        key_type, inner = parts[0], _codec(parts[1])
        return _Codec(
            f"an object of {'ranks' if key_type is int else 'names'}, each value {inner.name},",
            lambda value: {str(key): inner.write(item) for key, item in value.items()},
            lambda value: {
                key_type(key): inner.read(item) for key, item in _expect(isinstance(value, dict), value).items()
            },
        )
    return _SCALARS[hint]


def _unchanged(value: Any) -> Any:
    return value


def _expect(condition: bool, value: Any) -> Any:
    if not condition:
        raise TypeError
    return value


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


_SCALARS = {
    bool: _Codec("true or false", _unchanged, lambda value: _expect(isinstance(value, bool), value)),
    int: _Codec("an integer", _unchanged, lambda value: _expect(_is_number(value, int), value)),
    float: _Codec(
        "a number",
        lambda value: round(value, _DIGITS),
        lambda value: float(_expect(_is_number(value, int, float), value)),
    ),
    str: _Codec("a string", _unchanged, lambda value: _expect(isinstance(value, str), value)),
}
_CODECS = {
    kind: {name: _codec(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    for kind in KINDS.values()
}
