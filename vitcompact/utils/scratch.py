"""Folders for temporary files, which do not outlive their processes for long."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitcompact.errors import UsageError
from vitcompact.utils.locks import beside, exclusive
from vitcompact.utils.postponed import whole

_PREFIX = "vitcompact-"
_OURS = re.compile(_PREFIX + "[0-9a-f]{16}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder where the system keeps temporary files (TMPDIR), for this user alone; gone afterwards.

    It is locked from before it is made until it is gone. Those that nobody holds were left by killed processes, and go
    first.

    Raises:
        OSError: there is no such place, or it cannot be written.
    """
    root = Path(tempfile.gettempdir())
    _sweep(root)
    path = root / f"{_PREFIX}{secrets.token_hex(8)}"
    with exclusive(path), whole(lambda: path.mkdir(mode=0o700), lambda: shutil.rmtree(path, ignore_errors=True)):
        yield path


def _sweep(root: Path) -> None:
    locks = (lock.name[1:].partition(".")[0] for lock in root.glob(beside(root / f"{_PREFIX}*", "lock").name))
    folders = (path.name for path in root.glob(f"{_PREFIX}*") if _OURS.fullmatch(path.name))
    for path in {root / name for name in (*locks, *folders)}:
        with suppress(OSError, UsageError), exclusive(path) as nobodys:  # of another user, or in use
            if nobodys:
                shutil.rmtree(path, ignore_errors=True)
