"""One writer at a time: a file or folder that is about to be written is held by one process.

The lock is the operating system's (`flock`), so it ends with its process, however that ends. Its file lies hidden
beside what it guards and goes with the lock; what a killed process leaves of it is taken over by the next one. Where
the system or the file system has no such locks, nothing is held.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vitcompact.errors import UsageError
from vitcompact.utils.postponed import whole

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

OURS = re.compile(r"\.(.+)\.vitcompact-(?:lock|new|old|ready)")
"""Hidden siblings, by the name of what they stand beside."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass
class _Held:
    descriptor: int | None
    depth: int = 1


@dataclass
class _Taken:
    """What one entry into `exclusive` took: the lock, if for the first time, and the folders made for it."""

    held: bool = False
    outermost: bool = False
    made: list[Path] = field(default_factory=list)


_held: dict[Path, _Held] = {}
_guard = threading.RLock()


def beside(path: Path, kind: str) -> Path:
    """The hidden sibling of `path` that is used for locks and for what is not finished."""
    return path.with_name(f".{path.name}.vitcompact-{kind}")


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold `path` for this process; missing folders above it are made, and go again if they stay empty.

    May be entered again while it is held. Yields whether this is the outermost time.

    Raises:
        UsageError: another process holds it.
        OSError: the folder above cannot be made or written.
    """
    path, taken = path.resolve(), _Taken()
    with whole(lambda: _take(path, taken), lambda: _give_back(path, taken)):
        yield taken.outermost


def _take(path: Path, taken: _Taken) -> None:
    with _guard:
        if path in _held:
            _held[path].depth += 1
        else:
            taken.outermost = True
            _make_folders(path.parent, taken.made)
            _held[path] = _Held(_acquire(path))
        taken.held = True


def _give_back(path: Path, taken: _Taken) -> None:
    with _guard:
        if taken.held:
            held = _held[path]
            held.depth -= 1
            if not held.depth:
                del _held[path]
                _release(path, held.descriptor)
        if taken.outermost:
            _remove_empty(taken.made)


def _acquire(path: Path) -> int | None:
    if fcntl is None:
        return None
    lock = beside(path, "lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | _NO_LINK | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, lock):
                return descriptor
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                os.close(descriptor)
                lock.unlink(missing_ok=True)
                return None
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(f"{path} is being written by another run of vitcompact: wait until it ends") from error
            raise
        os.close(descriptor)  # the holder before has just taken its file away: what was locked is no longer there


def _release(path: Path, descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):  # a file that stays is taken over by whoever comes next
            beside(path, "lock").unlink()  # still held: nobody else can have it open as theirs
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make `folder` and what is missing above it; `made` takes what that is, innermost first."""
    made += [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
