"""JSON as the dataclass that wrote it: every field of its own type, none unknown, none missing, nothing converted."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 1 << 62
"""Of an integer: sizes, steps and bytes stay below."""


def typed(kind: type[T], data: Any, what: str) -> T:
    """An object of the dataclass `kind` from what `dataclasses.asdict` made of one, by way of JSON.

    Args:
        what: it is, for messages.

    Raises:
        ValueError: another type, an unknown or a missing field, a number that is not finite; the message names it.
    """
    found: T = _read(kind, data, what)
    return found


def _read(hint: Any, value: Any, what: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _object(hint, value, what)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _one_of(hint, value, what)
    if hint is Any or (origin is Literal and value in get_args(hint) and isinstance(value, str)):
        return value
    if origin in (tuple, list, Sequence):
        return _several(hint, value, what)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{what} must be an object, got {_name(value)}")
        return {key: _read(get_args(hint)[1], item, f"{what}.{key}") for key, item in value.items()}
    return _plain(hint, value, what)


def _object(kind: Any, value: Any, what: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be an object, got {_name(value)}")
    fields, hints = {field.name: field for field in dataclasses.fields(kind)}, get_type_hints(kind)
    if unknown := sorted(set(map(str, value)) - fields.keys()):
        raise ValueError(f"{what} has the unknown field {unknown[0][:80]!r}; known: {', '.join(fields)}")
    needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{what} has no {missing[0]}")
    return kind(**{name: _read(hints[name], item, f"{what}.{name}") for name, item in value.items()})


def _one_of(hint: Any, value: Any, what: str) -> Any:
    errors = []
    for each in get_args(hint):
        try:
            return _read(each, value, what)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _several(hint: Any, value: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{what} must be a list, got {_name(value)}")
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if get_origin(hint) is not tuple:
        kinds = kinds * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{what} must be a list of {len(kinds)}, got {len(value)}")
    return tuple(_read(kind, item, what) for kind, item in zip(kinds, value, strict=True))


def _plain(hint: Any, value: Any, what: str) -> Any:
    if hint is type(None) and value is None:
        return None
    if hint is float and type(value) is int and abs(value) <= LARGEST:
        return value
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise ValueError(f"{what} must be {_WORDS.get(hint, 'null')}, got {_name(value)}")
    if hint is int and abs(value) > LARGEST:
        raise ValueError(f"{what} must be an integer of a size that there is, got {len(str(value))} digits")
    return value


_WORDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}


def _name(value: Any) -> str:
    """A value as messages show it."""
    return str(value)[:40] if isinstance(value, (bool, int, float)) else type(value).__name__
