"""JSON from strangers: of a bounded size, an object, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitcompact.errors import CheckpointError
from vitcompact.utils import reading

MAX_BYTES = 16 << 20
"""No configuration of a model is larger; names of 21,000 classes take one megabyte."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: unreadable, no regular file, too large, no JSON, too nested, or not an object.
    """
    try:
        data = reading.read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: expected an object, got a {type(data).__name__}")
    return data
