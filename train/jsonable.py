"""What JSON files keep of values that JSON does not have: paths, arrays, sets, enumerations and dataclasses."""

import collections.abc
import dataclasses
import enum
import math
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

_SEQUENCES = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: tuple,
    collections.abc.Set: frozenset,
}


def to_json(value: Any) -> Any:
    """A value as JSON has it. What this does not know is left as it is, and ``json.dumps`` refuses it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(to_json(item) for item in value)
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    return value


def finite(value: Any) -> Any:
    """As JSON has it, with null for numbers that are not finite: strict readers refuse NaN and Infinity."""
    value = to_json(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, but for lists in place of tuples; NaN is equal to NaN."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if dataclasses.is_dataclass(a) and not isinstance(a, type) and type(a) is type(b):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def from_json(value: Any, hint: Any) -> Any:
    """The value of a type that :func:`to_json` has turned into this; where the type says nothing, lists become tuples.

    Raises:
        TypeError: A dataclass has no field of some name, or an enumeration no such member.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return from_json(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return from_json(value, next((one for one in arguments if _fits(value, one)), None))
    kind = hint if isinstance(hint, type) else origin
    if isinstance(value, Mapping):
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            hints = typing.get_type_hints(kind)
            return kind(**{name: from_json(item, hints.get(name)) for name, item in value.items()})
        of_items = arguments[1] if len(arguments) == 2 else None
        return {key: from_json(item, of_items) for key, item in value.items()}
    if isinstance(value, list):
        return _sequence(value, kind, arguments)
    if isinstance(value, str) and isinstance(kind, type):
        if issubclass(kind, pathlib.PurePath):
            return kind(value)
        if issubclass(kind, enum.Enum):
            if value not in kind.__members__:
                raise TypeError(f"{kind.__name__} has no member {value!r}")
            return kind[value]
    return value


def _sequence(items: list[Any], kind: Any, arguments: tuple[Any, ...]) -> Any:
    if kind is tuple and arguments and arguments[-1] is not ...:
        hints = [*arguments, *[None] * len(items)][: len(items)]
    else:
        hints = [arguments[0] if arguments else None] * len(items)
    return _SEQUENCES.get(kind, tuple)(from_json(item, hint) for item, hint in zip(items, hints, strict=True))


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON's value can be one of this member of a union."""
    if value is None or hint is type(None):
        return value is None and hint is type(None)
    kind = typing.get_origin(hint) or hint
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, Mapping))
    if isinstance(value, list):
        return kind in _SEQUENCES
    if isinstance(value, str) and isinstance(kind, type) and issubclass(kind, pathlib.PurePath | enum.Enum):
        return not issubclass(kind, enum.Enum) or value in kind.__members__
    return isinstance(kind, type) and isinstance(value, kind) and not isinstance(value, dict)
