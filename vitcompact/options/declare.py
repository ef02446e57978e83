"""How a field of a dataclass says what it sets: its help, unit, limits and heading, for Python and the command line.

Nothing here knows the command line, which reads these declarations (`cli/command.py`).
"""

from __future__ import annotations

import ast
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vitcompact.errors import UsageError

TARGET = "Targets"
MODEL = "Model"
IMAGES = "Images"
COMPACTION = "What is compacted"
SURGERY = "How it is solved"
TRAINING = "Training"
MEASUREMENT = "Measurement"
EXPORT = "Exported file"
RUN = "Run"
OUTPUT = "Output"
MESSAGES = "Messages and configuration"
PANELS = (TARGET, MODEL, IMAGES, COMPACTION, SURGERY, TRAINING, MEASUREMENT, EXPORT, RUN, OUTPUT, MESSAGES)
"""Headings, in their order."""

LARGEST = 2**63 - 1
"""Whole numbers beyond it fit into no seed, size or count of torch."""
_KEY = "vitcompact.option"


@dataclass(frozen=True)
class Option:
    """One declaration.

    Attributes:
        help: what it sets, in a sentence.
        panel: heading that it is listed under; empty for a parameter that only Python has.
        unit: what a value is, in capitals: `MINUTES`, `PIXELS`, `N`.
        unset: what None stands for.
        spelled: names on the command line where they are others than the field's, the preferred one first.
        short: a letter for the command line.
        items: int, float or str for a list of them, written with commas.
        single: a list of one number is that number.
        repeated: a list of texts whose values are given one by one.
        pairs: a mapping, written as `key=value` and others of the kind after it.
        words: words that may stand instead of a list.
        recorded: name in recorded options where it is another than the field's.
        least, most: limits of a number, or of each number of a list; both belong to what is allowed.
        above, below: likewise, and do not belong.
        rare: of the second tier, which help shows only where all options are asked for.
    """

    help: str
    panel: str = ""
    unit: str | None = None
    unset: str = ""
    spelled: tuple[str, ...] = ()
    short: str = ""
    items: type | None = None
    single: bool = False
    repeated: bool = False
    pairs: bool = False
    words: tuple[str, ...] = ()
    recorded: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    rare: bool = False

    def read(self, name: str, written: Any) -> Any:
        """A value as the library takes it, from what is written on a command line or in a file.

        Raises:
            UsageError: a list of numbers that has something else in it, or a mapping that is none.
        """
        if self.repeated:
            return tuple(written)
        if self.pairs and written is not None:
            return _pairs(name, written)
        if self.items is None or written is None or written in self.words:
            return written
        listed = (written,) if isinstance(written, (int, float)) else written
        parts = written.replace(",", " ").split() if isinstance(written, str) else listed
        if self.items is str:
            return tuple(part for part in parts if part != "none")
        try:
            values = tuple(self.items(part) for part in parts)
        except ValueError:
            values = ()
        if not values or not all(isinstance(value, int) or math.isfinite(value) for value in values):
            example = "1,8,32" if self.items is int else "0.5,0.5,0.5"
            words = "".join(f"'{word}' or " for word in self.words)
            raise UsageError(f"`{name}` takes {words}numbers such as {example}, got {written!r}")
        return values[0] if self.single and len(values) == 1 else values

    def refusal(self, value: Any) -> str:
        """What a number must be and is not, or an empty text."""
        if any(isinstance(number, int) and abs(number) > LARGEST for number in _numbers(value)):
            return f"at most {LARGEST} in size"
        if self._allowed(value):
            return ""
        least, most, above, below = self.least, self.most, self.above, self.below
        if above is not None and below is not None:
            return f"between {above:g} and {below:g} (both exclusive)"
        if least is not None and below is not None:
            return f"in [{least:g}, {below:g})"
        if above is not None and most is not None:
            return f"above {above:g} and at most {most:g}"
        if least is not None and most is not None:
            return f"{least:g} to {most:g}"
        if least is None and above is None:
            return "a finite number"
        return f"at least {least:g}" if least is not None else f"above {above:g}"

    def _allowed(self, value: Any) -> bool:
        return all(
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            for number in _numbers(value)
        )


def _numbers(value: Any) -> list[int | float]:
    """The numbers that a value is or holds."""
    several = value if isinstance(value, (tuple, list)) else (value,)
    return [number for number in several if isinstance(number, (int, float))]


def _pairs(name: str, written: Any) -> dict[str, Any]:
    """A mapping from `a=1 b=(2, 3)`; values are Python's, and texts where they are not."""
    if isinstance(written, Mapping):
        return {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
    parts = re.split(r"[\s,]+(?=[A-Za-z_]\w*=)", str(written).strip())
    pairs = [part.partition("=") for part in parts]
    if not all(key.isidentifier() and equals for key, equals, _ in pairs):
        raise UsageError(
            f"`{name}` takes key=value and others after it, such as 'reg_tokens=4 fc_norm=False', got {written!r}"
        )
    return {key: _python_value(value) for key, _, value in pairs}


def _python_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def option(default: Any, help: str, panel: str = "", unit: str | None = None, **declared: Any) -> Any:
    """A field with a declaration; `declared` is what else `Option` takes."""
    return dataclasses.field(default=default, metadata={_KEY: Option(help, panel, unit, **declared)})


def declared(kind: type) -> dict[str, Option]:
    """The declarations of a dataclass, by the names of its fields."""
    return {field.name: field.metadata[_KEY] for field in dataclasses.fields(kind) if _KEY in field.metadata}


def check_limits(options: Any) -> None:
    """Compare every value with the type of its field, and every number with what its declaration allows.

    Raises:
        UsageError: one is not allowed.
    """
    kind: Any = type(options)
    hints = _hints(kind)
    for name, declaration in declared(type(options)).items():
        value = getattr(options, name)
        check_type(name, hints[name], value)
        if refusal := declaration.refusal(value):
            got = ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            raise UsageError(f"`{name}` must be {refusal}, got {got if len(got) <= 80 else f'{got[:80]}…'}")


def check_type(name: str, hint: Any, value: Any) -> None:
    """Raises UsageError where a value is not of a kind that its field takes; numbers and paths of any class will do."""
    if not _fits(hint, value):
        raise UsageError(f"`{name}` cannot be {str(value)[:80]!r}, a {type(value).__name__}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(each, value) for each in inner)
    if origin is Literal:
        return isinstance(value, str)  # which one it is, is checked with what is accepted
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if origin in (tuple, list, Sequence):
        several = isinstance(value, (list, tuple)) or (isinstance(value, Sequence) and not isinstance(value, str))
        return several and (not inner or all(_fits(inner[0], item) for item in value))
    if hint in (int, float):
        return hasattr(value, "__index__" if hint is int else "__float__") and not isinstance(value, (bool, str))
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    if hint in (bool, type(None)):
        return isinstance(value, hint)
    return True


def one_of(name: str, value: str | None, accepted: tuple[str, ...]) -> None:
    """Raises UsageError where a name is not among those accepted."""
    if value and value not in accepted:
        raise UsageError(f"unknown `{name}` '{value}': accepted are {', '.join(accepted)}")
