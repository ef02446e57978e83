"""How a field of an options dataclass says what it is on the command line: declared once, used everywhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import typer

from vitcompact.errors import UsageError

MODEL = "Model"
IMAGES = "Images"
COMPACTION = "What is compacted"
SURGERY = "How it is solved"
TRAINING = "Training"
MEASUREMENT = "Measurement"
RUN = "Run"
OUTPUT = "Output"
MESSAGES = "Messages and configuration"
PANELS = (MODEL, IMAGES, COMPACTION, SURGERY, TRAINING, MEASUREMENT, RUN, OUTPUT, MESSAGES)
"""Headings in `--help`, in their order."""


def option(default: Any, *flags: str, panel: str, help: str, numbers: type | None = None, **info: Any) -> Any:
    """A field given as an option.

    Args:
        default: a list stands for an option that may be repeated.
        *flags: none is the field's name with dashes.
        panel: heading in `--help`.
        help: text in `--help`, with the unit.
        numbers: int or float for a list of numbers, written `0.5,0.5,0.5` or `0.5 0.5 0.5`.
        **info: what `typer.Option` takes.
    """
    if numbers is not None:
        info.setdefault("show_default", False)
    elif isinstance(default, bool):
        info.setdefault("metavar", "")
    parameter = typer.Option(*flags, rich_help_panel=panel, help=help, **info)
    return _field(default, parameter, numbers, flags)


def argument(metavar: str, help: str) -> Any:
    """A field given by position; None where it was not."""
    return _field(None, typer.Argument(metavar=metavar, help=help, show_default=False), None, ())


def _field(default: Any, parameter: Any, numbers: type | None, flags: tuple[str, ...]) -> Any:
    metadata = {"parameter": parameter, "numbers": numbers, "flags": flags}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flags_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """All spellings of an option: `--batch-size`, `-b`."""
    return field.metadata["flags"] or (f"--{field.name.replace('_', '-')}",)


def parse_numbers(text: str, kind: type, flag: str) -> tuple[Any, ...]:
    """Numbers separated by commas or blanks.

    Raises:
        UsageError: something else.
    """
    parts = text.replace(",", " ").split()
    try:
        values = tuple(kind(part) for part in parts)
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        example = "1,8,32" if kind is int else "0.5,0.5,0.5"
        raise UsageError(f"{flag} needs numbers such as {example}, got {text!r}")
    return values
