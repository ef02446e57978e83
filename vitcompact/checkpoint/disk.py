"""Output directories: what may be overwritten, and how tensors get there."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from vitcompact.checkpoint.record import read_record
from vitcompact.errors import UsageError, VitCompactError
from vitcompact.utils.reading import shortened


def check_out(out: str | Path, *, overwrite: bool = False, keep: Mapping[str, str | Path | None] | None = None) -> Path:
    """The directory to write, resolved; call it early to refuse before a long job.

    Args:
        out: the directory.
        overwrite: replace an existing one, if every file in it was written by `save`.
        keep: what must outlive the job, by what it is in messages, such as the model that is read and the images.

    Raises:
        UsageError: it exists (and `overwrite` is not given), is a file, holds anything that `save` did not write, or is
            or holds something of `keep`.
    """
    try:
        out = Path(out).expanduser().resolve()
        exists = out.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{shortened(out)} is no name for a directory: {getattr(error, 'strerror', None) or error}"
        ) from error
    for what, path in (keep or {}).items():
        kept = None if path is None else Path(path).expanduser().resolve()
        if kept is not None and exists and out in (kept, *kept.parents):
            where = "is" if kept == out else "holds"
            raise UsageError(f"{out} {where} {what}, which this job reads: give another directory")
    if not exists:
        return out
    if not out.is_dir():
        raise UsageError(f"{out} is a file; give the name of a directory")
    if not overwrite:
        raise UsageError(f"{out} exists; give another directory, or `overwrite=True` to replace it")
    if foreign := foreign_entries(out):
        raise UsageError(f"{out} is not overwritten: {foreign}; give another directory, or remove it yourself")
    return out


def foreign_entries(out: Path) -> str | None:
    """Why a directory is not all ours, or None where every entry of it is a file that `save` wrote."""
    entries = {entry.name: entry for entry in os.scandir(out)}
    if not entries:
        return None
    try:
        files = read_record(out).files
    except VitCompactError as error:
        return f"it is not known to be written by vitcompact ({error})"
    other = sorted(
        name for name, entry in entries.items() if name not in files or not entry.is_file(follow_symlinks=False)
    )
    return f"it also holds {', '.join(other[:3])}{', …' if len(other) > 3 else ''}" if other else None


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the access rights of any new file. Its errors are those of the disk (OSError)."""
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata=dict(header or {"format": "pt"}))
    except safetensors.SafetensorError as error:
        # The library reports what the operating system said only as text: "... (os error 28)".
        number = next((code for code in errno.errorcode if f"os error {code})" in str(error)), errno.EIO)
        raise OSError(number, os.strerror(number)) from error
    path.chmod(mode)  # safetensors lets nobody else read it
