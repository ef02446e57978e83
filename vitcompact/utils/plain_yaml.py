"""YAML of plain values, with bounds on size, nesting and aliases."""

from __future__ import annotations

from typing import Any

import yaml

from vitcompact.utils.reading import check_depth

YAML_BYTES = 1 << 18
"""Configurations and the head of a model card: YAML takes seconds for a megabyte."""
MAX_ALIASES = 100
MAX_VALUES = 100_000
MAX_BITS = 1_024
"""Of an integer: Python writes none of thousands of digits, and YAML has other ways to name them."""


def parse_yaml(text: str) -> Any:
    """The document in a text.

    Raises:
        ValueError: beyond a bound, or not YAML.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"it is longer than the {YAML_BYTES:,} characters that are read of YAML")
    try:
        depth = aliases = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            check_depth(depth)
            if aliases > MAX_ALIASES:
                raise ValueError(f"it has more than {MAX_ALIASES} aliases")
        return _unfolded(yaml.safe_load(text))
    except Exception as error:  # the library's constructors raise what comes: of a wrong tag an AttributeError
        raise ValueError(" ".join(str(error).split())) from error


def _unfolded(document: Any) -> Any:
    """`document`, unless aliases make a tree of more than `MAX_VALUES` values of it, or a circle."""
    waiting, seen = [document], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ValueError(f"it has an integer of {value.bit_length():,} bits")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return document
