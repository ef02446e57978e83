"""Directories on disk that are complete or do not exist."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from vitcompact.checkpoint.record import RECORD_NAME
from vitcompact.errors import UsageError

_OURS = {"config.json", RECORD_NAME}  # a directory with one of these may be overwritten


def check_out(out: str | Path, *, overwrite: bool = False) -> Path:
    """The directory to write, resolved; call it early to refuse before a long job.

    Raises:
        UsageError: it exists (and `overwrite` is not given), is a file, or is a directory that holds no model.
    """
    out = Path(out).expanduser().resolve()
    if not out.exists():
        return out
    if not out.is_dir():
        raise UsageError(f"{out} is a file; give the name of a directory")
    if not overwrite:
        raise UsageError(f"{out} exists; give another directory, or --overwrite to replace it")
    names = {path.name for path in out.iterdir()}
    if names and not names & _OURS:
        raise UsageError(f"{out} is not overwritten: it holds other files and no model; give another directory")
    return out


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Its errors are those of the disk (OSError)."""
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        # The library reports what the operating system said only as text: "... (os error 28)".
        number = next((code for code in errno.errorcode if f"os error {code})" in str(error)), errno.EIO)
        raise OSError(number, os.strerror(number)) from error


@contextmanager
def sibling(out: Path) -> Iterator[Path]:
    """A new hidden folder beside `out`, gone afterwards unless it was renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Rename `folder` to `out`; an old `out` stays complete until the new one is, and comes back on failure."""
    check_out(out, overwrite=overwrite)  # again: it may have appeared meanwhile
    if not out.exists():
        folder.rename(out)
    else:
        old = folder.with_suffix(".old")
        out.rename(old)
        try:
            folder.rename(out)
        except BaseException:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(out.parent)


@contextmanager
def disk_errors(out: Path, num_bytes: int) -> Iterator[None]:
    """Turn what the disk refuses into one message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(f"the disk is full: {out} needs {num_bytes:,} bytes; nothing was written") from error
        raise UsageError(f"cannot write {out}: {error.strerror or error}; nothing was written") from error


def sync(path: Path) -> None:
    """Make sure that a file or folder has reached the disk; a delayed 'disk full' shows here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
