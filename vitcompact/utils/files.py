"""Files and folders on disk that are complete or do not exist, whatever ends the process.

What is being written lies in a hidden folder beside its final name. An existing folder is exchanged for the new one in
one step where the system can do that; elsewhere the old one steps aside for a moment, and comes back on the next start
if the process ended just then (`settle`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vitcompact.errors import UsageError
from vitcompact.utils.locks import OURS, beside, exclusive
from vitcompact.utils.postponed import uninterrupted, whole
from vitcompact.utils.reading import name_errors

NOTHING_WRITTEN = "; nothing was written"
NEW, OLD, READY = "new", "old", "ready"
_GONE = ".vitcompact-gone"
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_ESCAPED_IN_JSON = re.compile("[\x7f-\x9f\ud800-\udfff]")
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold `path` for this process, and put right what an earlier process left unfinished there.

    Raises:
        UsageError: another process holds it, or the disk refuses.
    """
    with name_errors(path):
        path = path.resolve()
    with ExitStack() as held:
        with disk_errors(path):
            if held.enter_context(exclusive(path)):
                settle(path)
        yield


def settle(path: Path) -> None:
    """Remove what a killed process left beside `path`, bring back what it had moved aside, and finish what it had
    written whole; `path` is held."""
    old, ready = beside(path, OLD), beside(path, READY)
    if ready.exists():
        _take_places(ready, path)
    if old.exists() and not path.exists():
        old.rename(path)
    for left in (old, beside(path, NEW)):
        if left.exists():
            shutil.rmtree(left)


def tidied(folder: Path) -> None:
    """Put right what killed processes left unfinished of anything in a folder that is one run's at a time."""
    if folder.is_dir():
        for path in {folder / found[1] for name in os.listdir(folder) if (found := OURS.fullmatch(name))}:
            with suppress(UsageError), claimed(path):  # somebody is writing it
                pass


def restored(path: Path) -> Path:
    """`path`, brought back first where a killed process had moved it aside, or not finished to replace it."""
    with name_errors(path):
        moved = beside(path, READY).exists() or (not path.exists() and beside(path, OLD).exists())
    if moved:
        with claimed(path):
            pass
    return path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A new hidden folder beside `path`, which is held meanwhile; the folder is gone afterwards unless published."""
    with claimed(path):
        folder = beside(path.resolve(), NEW)
        with whole(folder.mkdir, lambda: shutil.rmtree(folder, ignore_errors=True)):
            yield folder


def publish(folder: Path, path: Path) -> None:
    """Give a staged folder its final name; what was there is complete until then, and gone afterwards."""
    for item in (*folder.iterdir(), folder):
        sync(item)
    with uninterrupted():
        if not path.exists():
            folder.rename(path)
        elif not exchange(folder, path):
            old = beside(path, OLD)
            path.rename(old)
            try:
                folder.rename(path)
            except BaseException as error:
                _put_back(old, path, error)
                raise
            shutil.rmtree(old, ignore_errors=True)
        _confirm(path)


def _put_back(old: Path, path: Path, error: BaseException) -> None:
    try:
        old.rename(path)
    except OSError:
        raise UsageError(
            f"cannot write {path}: {error}; what was there lies in {old}, and the next command that reads or writes "
            "this name moves it back"
        ) from error


def _confirm(path: Path) -> None:
    """Let a name that was given reach the disk. Raises UsageError where that is refused, which undoes nothing."""
    try:
        sync(path.parent)
    except OSError as error:
        raise UsageError(
            f"{path} is written, but the disk does not confirm that it stays: {error.strerror or error}; check the disk"
        ) from error


def publish_files(folder: Path, path: Path, others: Iterable[Path] = ()) -> None:
    """Give the files of a staged folder their places beside `path`, which is one of them and needs the others.

    From one moment on the new files are what there is, also where the process ends before all of them are in place:
    the next one that writes or reads `path` finishes it. No file of that name stands beside others of another one.

    Args:
        others: names that may hold files of the one before; those that are not written anew go.
    """
    for other in others:
        if other.exists() and not (folder / other.name).exists():
            (folder / f"{other.name}{_GONE}").touch()
    for item in (*folder.iterdir(), folder):
        sync(item)
    with uninterrupted():
        ready = beside(path, READY)
        folder.rename(ready)
        count = len([*ready.iterdir()])
        try:
            _take_places(ready, path)
        except OSError as error:
            left = len([*ready.iterdir()]) if ready.exists() else 0
            if left == count and (count == 1 or path.exists()) and _back(ready, folder):
                raise  # all is as it was
            if not left:
                return  # an empty folder, which the next one removes
            raise UsageError(
                f"cannot finish {path}: {error.strerror}; the new files lie in {ready}, and the next command that "
                "reads or writes this name moves them here"
            ) from error


def _back(ready: Path, folder: Path) -> bool:
    with suppress(OSError):
        ready.rename(folder)
        return True
    return False


def _take_places(ready: Path, path: Path) -> None:
    """Move the files of a folder that is complete to where they belong; begun before, it is gone on with."""
    if (ready / path.name).exists() and len([*ready.iterdir()]) > 1:
        path.unlink(missing_ok=True)
    for item in sorted(ready.iterdir(), key=lambda item: item.name == path.name):
        if item.name.endswith(_GONE):
            path.with_name(item.name.removesuffix(_GONE)).unlink(missing_ok=True)
            item.unlink()
        else:
            item.replace(path.with_name(item.name))
    _confirm(path)
    ready.rmdir()


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name by `write`, and give it its own when it is complete. Folders are made.

    Raises:
        UsageError: another process is writing it, or the disk refuses; what was there before is still there.
    """
    with disk_errors(path), staged(path) as folder:
        temporary = folder / path.name
        write(temporary)
        sync(temporary)
        with uninterrupted():
            temporary.replace(path)
            _confirm(path)


def write_file(path: Path, content: str | bytes) -> None:
    """`replace_file` with text (UTF-8) or bytes."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        with disk_errors(path, len(data)):
            temporary.write_bytes(data)

    replace_file(path, write)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under one more name, or a copy of it where there are no links; for files that are only replaced."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def json_text(data: Any) -> str:
    """JSON as it stands in the files written here, and on stdout: what no terminal should see is escaped."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return _ESCAPED_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders in one step; False where the system or the file system cannot."""
    sys.audit("vitcompact.exchange", str(first), str(second))
    names = [os.fsencode(path) for path in (first, second)]
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)  # type: ignore[union-attr]
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(names[0], names[1], _RENAME_SWAP)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


@contextmanager
def disk_errors(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn what the disk refuses into one message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = "" if num_bytes is None else f": {path} needs {num_bytes:,} bytes"
            raise UsageError(f"the disk is full{size}{NOTHING_WRITTEN}") from error
        raise UsageError(f"cannot write {path}: {error.strerror or error}{NOTHING_WRITTEN}") from error


def sync(path: Path) -> None:
    """Make sure that a file or folder has reached the disk; a delayed 'disk full' shows here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
