"""Typed access to another library's configuration: what is missing has its default, what is nonsense is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcompact.errors import CheckpointError

_MOST = 1 << 17  # no width, side or number of classes is larger


class Config:
    """The object in a `config.json`, or one section of it.

    Args:
        data: the object.
        where: what it is, for messages.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def integer(self, name: str, default: int, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number.

        Raises:
            CheckpointError: not one, or out of range; so do the others.
        """
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, f"expected a number from {least} to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number, not negative."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise self.error(name, "expected a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "expected true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A word."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "expected a text")
        return value

    def size(self, name: str, default: int) -> tuple[int, int]:
        """(height, width), from one number or two."""
        value = self._get(name, default)
        pair = [value, value] if isinstance(value, int) else value
        if not isinstance(pair, list) or len(pair) != 2 or not all(self._is_side(side) for side in pair):
            raise self.error(name, "expected one or two numbers")
        return pair[0], pair[1]

    def integers(self, name: str, default: tuple[int, ...]) -> list[int]:
        """A list of whole numbers, one a stage."""
        value = self._get(name, list(default))
        if not isinstance(value, list) or not 1 <= len(value) <= 16 or not all(map(self._is_side, value)):
            raise self.error(name, "expected a list of numbers")
        return list(value)

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of finite numbers, one a channel."""
        value = self._get(name, list(default))
        plain = isinstance(value, list) and all(type(each) in (int, float) and abs(each) < 1e30 for each in value)
        if not plain or not 1 <= len(value) <= 64:
            raise self.error(name, "expected a list of numbers")
        return tuple(map(float, value))

    def names(self, name: str) -> tuple[str, ...]:
        """A list of words; empty where it is missing or something else."""
        value = self.data.get(name)
        return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()

    def section(self, name: str) -> Config:
        """An object inside; empty where it is missing."""
        value = self._get(name, {})
        if not isinstance(value, Mapping):
            raise self.error(name, "expected an object")
        return Config(value, f"{self.where}, {name}")

    def class_names(self) -> tuple[str, ...]:
        """`id2label` in label order; empty where it is missing or holds the library's placeholders."""
        table = self._get("id2label", {})
        if not isinstance(table, Mapping):
            raise self.error("id2label", "expected an object")
        names = [table.get(str(index)) for index in range(len(table))]
        if not all(isinstance(name, str) for name in names):
            return ()
        placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
        return () if placeholders else tuple(map(str, names))

    def error(self, name: str, expected: str) -> CheckpointError:
        """What to raise for a value that cannot be used."""
        return CheckpointError(f"{self.where}: {name} is {self.data.get(name)!r}, {expected}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    @staticmethod
    def _is_side(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST
