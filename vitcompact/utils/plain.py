"""Values as JSON knows them."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcompact.errors import UsageError

_TORCH_NAMES = ("torch.dtype", "torch.device")  # by name: the command line writes JSON before torch is loaded


def to_plain(value: Any) -> Any:
    """A value as JSON knows it: paths and enums as text, dataclasses as objects, NaN and infinities as null.

    Raises:
        UsageError: a value that has no such form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, Path) or f"{type(value).__module__}.{type(value).__qualname__}" in _TORCH_NAMES:
        return str(value)
    if hasattr(value, "item") and callable(value.item):  # numpy and torch scalars
        return to_plain(value.item())
    raise UsageError(f"options and results must be plain data, got a {type(value).__name__}")
