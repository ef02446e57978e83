"""The one door for small files that may come from strangers; YAML is parsed in `plain_yaml`.

A pipe or a device is never waited for, no more than a limit is read, and nesting has an end. Whatever is wrong is an
OSError (the system's word for it) or a ValueError.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitcompact.errors import UsageError

JSON_BYTES = 1 << 26
"""Plans, records, analyses; the largest of timm's models needs a hundredth."""
MAX_DEPTH = 64

_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def check_regular(path: Path) -> None:
    """Of a file that a library opens by itself: what would keep it waiting for ever.

    Raises:
        OSError: there is none.
        ValueError: no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")


def read_small(path: Path, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        OSError: there is none, or it may not be read.
        ValueError: no regular file, or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1) if found.st_size <= limit else b""
    if max(found.st_size, len(content)) > limit:
        raise ValueError(f"it is larger than the {limit:,} bytes that are read of such a file")
    return content


def read_text(path: Path, limit: int = JSON_BYTES) -> str:
    """`read_small` as UTF-8; its errors, and a ValueError for what is none."""
    return read_small(path, limit).decode()


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """The document in a JSON file; the errors of `read_small`, and a ValueError for what is not JSON or too nested."""
    return parse_json(read_text(path, limit))


def parse_json(text: str) -> Any:
    """A JSON document, nested at most `MAX_DEPTH` deep; else ValueError."""
    depth = 0
    for found in _STRINGS_AND_BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        check_depth(depth)
    return json.loads(text)


def check_depth(depth: int) -> None:
    """Raises ValueError for what is nested too deep."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


@contextmanager
def name_errors(name: object) -> Iterator[None]:
    """Turn what the system says of a name that no file can have (too long, a NUL character) into one message.

    Raises:
        UsageError: see above.
    """
    try:
        if "\0" in str(name):
            raise ValueError("it has a NUL character")  # pathlib says of such a name that there is no such file
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{shortened(name)} cannot be opened: {reason}") from error


def user_path(name: str | Path) -> Path:
    """The path that a name stands for, `~` expanded; whether anything is there is not said.

    Raises:
        UsageError: no file can have this name: it is too long, has a NUL character, or is below the home of a user whom
            this machine does not know.
    """
    with name_errors(name):
        path = Path(name).expanduser()
        path.exists()  # the system refuses some names here
    return path


def shortened(name: object, length: int = 80) -> str:
    """A name as messages show it: without control characters, and no longer than a line."""
    text = str(name)
    return repr(text if len(text) <= length else f"{text[:length]}…")
