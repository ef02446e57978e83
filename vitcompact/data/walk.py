"""Looks a folder or tar of images over before timm opens it: nothing in it may wait, go in circles or claim a size."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from vitcompact.data.kinds import ARRAYS, image_suffixes
from vitcompact.errors import DataError

MAX_FOLDERS = 200_000
"""A folder that seems to hold more is refused: links that lead to the same folders multiply them."""


def check_folder(root: Path) -> None:
    """Walk a folder as timm does, following links.

    Raises:
        DataError: a link leads back to a folder above it, links multiply the folders, or an image is a pipe or a
            device. Folders that cannot be read are left to timm.
    """
    suffixes = {*image_suffixes(), *ARRAYS}
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(root), frozenset())]
    visited = 0
    while waiting:
        folder, above = waiting.pop()
        visited += 1
        if visited > MAX_FOLDERS:
            raise DataError(f"{root} has more than {MAX_FOLDERS:,} folders, or links that multiply them")
        try:
            found = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError:
            continue
        here = (found.st_dev, found.st_ino)
        if here in above:
            raise DataError(f"{folder} is a link to a folder that it lies in: remove it, or name a folder below it")
        for entry in entries:
            if _is_folder(entry):
                waiting.append((entry.path, above | {here}))
            elif Path(entry.name).suffix.lower() in suffixes and _is_special(entry):
                raise DataError(f"{entry.path} is a pipe or a device, not an image: remove it")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Neither a file nor a broken link; a link to a pipe is one."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def check_tar(path: Path) -> None:
    """Read the headers of a tar.

    Raises:
        DataError: it cannot be read or is compressed, a member claims more bytes than the archive has (sparse ones do),
            or an image in it is a link or a device.
    """
    suffixes, size = {*image_suffixes(), *ARRAYS}, path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.size > size:
                    raise DataError(f"{path} is refused: {member.name[:80]!r} in it claims {member.size:,} bytes")
                if Path(member.name).suffix.lower() in suffixes and not (member.isreg() or member.isdir()):
                    raise DataError(
                        f"{path} is refused: {member.name[:80]!r} in it is a link or a device, not an image"
                    )
    except DataError:
        raise
    except Exception as error:  # headers may hold anything
        raise DataError(f"{path} is not a readable tar archive (empty, damaged, or compressed?): {error}") from error
