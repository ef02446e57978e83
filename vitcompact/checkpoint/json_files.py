"""JSON from strangers: of a bounded size, an object, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitcompact.errors import CheckpointError

MAX_BYTES = 16 << 20
"""No configuration of a model is larger; names of 21,000 classes take one megabyte."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: unreadable, too large, no JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} is refused: {size:,} bytes, more than any model's configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: expected an object, got a {type(data).__name__}")
    return data
