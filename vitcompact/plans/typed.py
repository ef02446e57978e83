"""Parts of a JSON document that have to be of one type: nothing is converted, and nothing unknown is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcompact.errors import UsageError


def known(data: Any, what: str, keys: tuple[str, ...]) -> None:
    """Raises UsageError where `data` is no object of these keys: a misspelt one would be lost without a word."""
    if not isinstance(data, Mapping):
        raise UsageError(f"malformed plan: {what} must be an object, got {type(data).__name__}")
    if unknown := sorted(set(map(str, data)) - set(keys)):
        raise UsageError(f"malformed plan: {what}: unknown field {unknown[0][:80]!r}; known: {', '.join(keys)}")


def listed(value: Any, what: str) -> list[Any]:
    """`value`, which has to be a list; else UsageError."""
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"malformed plan: {what} must be a list, got {type(value).__name__}")
    return list(value)


def text(data: Mapping[str, Any], key: str) -> str:
    """The text under `key`; UsageError where it is something else, KeyError where it is missing."""
    if not isinstance(data[key], str):
        raise UsageError(f"malformed plan: {key} must be a text, got {type(data[key]).__name__}")
    return str(data[key])
