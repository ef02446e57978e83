"""What a checkpoint says of its model, held against its weights file before there is time or memory for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from vitcompact.checkpoint.infer import without_memory
from vitcompact.errors import CheckpointError

MAX_TENSORS = 50_000
"""A checkpoint of more is refused; timm's largest models have some thousand."""
MAX_DIMS = 16
MAX_ITEMS = 1_000_000
"""Entries of all dictionaries in a checkpoint, counted as often as they are met: one may lie under many keys."""
MAX_NESTING = 64
_SLACK = 1 << 26  # a new classifier or a larger image may need that many more weights than the file has
_LARGEST = {"depth": 1_000, "depths": 1_000, "num_heads": 4_096, "img_size": 1 << 14, "input_size": 1 << 14}
_LARGEST_OTHER = 1 << 20
_MOST_VALUES = 10_000


class Search:
    """Looks through what a pickle holds, which may be a circle or the same thing a million times."""

    def __init__(self) -> None:
        self._seen = 0

    def enter(self, items: int, depth: int = 0) -> None:
        """Before the entries of a dictionary are looked at.

        Raises:
            CheckpointError: too many of them by now, or nested too deep.
        """
        self._seen += 1 + items
        if self._seen > MAX_ITEMS or depth > MAX_NESTING:
            raise CheckpointError("a checkpoint is refused: its dictionaries are nested too deep, or repeat themselves")


def check_tensors(tensors: Mapping[str, Tensor], label: str) -> None:
    """Refuse tensors that no model has.

    Raises:
        CheckpointError: too many, or one without data, nested or of very many dimensions.
    """
    check_number(len(tensors), label)
    for name, tensor in tensors.items():
        if reason := _reason(tensor):
            raise CheckpointError(f"{label} is refused: tensor {name[:80]!r} {reason}")


def check_number(tensors: int, label: str) -> None:
    """Raises CheckpointError for more tensors than any model has."""
    if tensors > MAX_TENSORS:
        raise CheckpointError(f"{label} is refused: {tensors:,} tensors, a model has at most {MAX_TENSORS:,}")


def _reason(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "is nested: save its parts"
    if tensor.is_meta:
        return "has a shape and no data: save the model after its weights were loaded"
    return f"has {tensor.ndim} dimensions" if tensor.ndim > MAX_DIMS else None


def check_numbers(args: Mapping[str, Any], label: str) -> None:
    """Refuse arguments of an architecture that no model has, since some are built before they are looked at.

    Raises:
        CheckpointError: a number, or a list, that is absurdly large; the message names it.
    """
    seen = 0
    waiting: list[tuple[str, str, Any]] = [(str(name), str(name), value) for name, value in args.items()]
    while waiting:
        name, key, value = waiting.pop()
        seen += 1
        largest = _LARGEST.get(key, _LARGEST_OTHER)
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{inner}", str(inner), item) for inner, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(name, key, item) for item in value]
        elif isinstance(value, (int, float)) and not abs(value) <= largest:
            raise CheckpointError(f"{label} is refused: {name[:80]} is {value:,}, at most {largest:,} is read")
        if seen > _MOST_VALUES:
            raise CheckpointError(f"{label} is refused: more than {_MOST_VALUES:,} arguments of the architecture")


def check_claim(planned: Callable[[], nn.Module], tensors: Mapping[str, Tensor], label: str) -> None:
    """Refuse a model far larger than its weights.

    Args:
        planned: builds the model, here without memory.

    Raises:
        CheckpointError: see above.
    """
    with without_memory():
        wanted = planned().state_dict()
    claimed, held = (sum(tensor.numel() for tensor in each.values()) for each in (wanted, tensors))
    if claimed > 2 * held + _SLACK:
        raise CheckpointError(f"{label} asks for a model of {claimed:,} weights, the weights file has {held:,}")
