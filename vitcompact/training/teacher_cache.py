"""What the original makes of training images, kept on disk: computed in the first epoch, read in all others.

An image is known by the SHA-256 of its prepared pixels, so that another preparation, augmentation or image is another
entry; the whole belongs to one run, by the SHA-256 of its models, options and first batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcompact.errors import UsageError
from vitcompact.training.options import TrainOptions
from vitcompact.training.stream import TrainingStream
from vitcompact.utils.processes import Processes
from vitcompact.utils.reading import parse_json

NAME = "teacher-cache"
"""Folder beside the state, with a file for each process."""
_SUFFIXES = ("", "-wal", "-shm", "-journal")

logger = logging.getLogger("vitcompact")


class TeacherCache:
    """Tensors by image, in one SQLite file: what a batch adds is there as a whole or not at all, whatever ends the run.

    Where the disk refuses or the file is damaged, nothing more is kept, and the run goes on.

    Args:
        path: of the file, which is made anew where it belongs to another `identity`.
        identity: of the run.
        limit: bytes of all entries; what comes later is not kept.

    Attributes:
        path: as given.
        hits, misses: images so far.
    """

    def __init__(self, path: Path, identity: str, limit: float) -> None:
        self.path, self._limit = path, limit
        self.hits = self.misses = 0
        self._bytes = 0
        self._file: sqlite3.Connection | None = None
        self._layout: list[tuple[str, list[int]]] | None = None
        with self._unless_refused():
            if not self._opened(identity):
                self.close()
                remove(path)
                self._opened(identity)

    def outputs(self, images: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """What `compute` makes of images (batch, ...), each tensor with a row for each of them.

        All are computed where one is not known, so that what is kept is of whole batches.
        """
        keys = _keys(images)
        if (found := self._read(keys, images.device)) is not None:
            self.hits += len(keys)
            return found
        self.misses += len(keys)
        made = list(compute(images))
        self._write(keys, made)
        return made

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            with suppress(sqlite3.Error):
                self._file.close()
        self._file = None

    def _opened(self, identity: str) -> bool:
        """Open the file; False where it belongs to something else."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_file():
            return False
        self._file = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._file.execute("PRAGMA trusted_schema=OFF")  # a file of somebody else may define code
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=OFF")  # a power cut may cost it, and nothing else
            self._file.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT)")
            self._file.execute("CREATE TABLE IF NOT EXISTS outputs (image BLOB PRIMARY KEY, content BLOB)")
            about = dict(self._file.execute("SELECT name, value FROM about"))
            if not about:
                self._file.execute("INSERT INTO about VALUES ('identity', ?)", (identity,))
            elif about.get("identity") != identity:
                return False
            self._layout = _layout_of(about.get("layout", "null"))
            self._bytes = self._file.execute("SELECT COALESCE(SUM(LENGTH(content)), 0) FROM outputs").fetchone()[0]
        except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError):
            return False
        return True

    def _read(self, keys: Sequence[bytes], device: torch.device) -> list[Tensor] | None:
        if self._file is None or self._layout is None:
            return None
        rows: list[bytes] = []
        with self._unless_refused():
            for key in keys:
                found = self._file.execute("SELECT content FROM outputs WHERE image = ?", (key,)).fetchone()
                if found is None or len(found[0]) != self._row_bytes:
                    return None
                rows.append(found[0])
        if len(rows) < len(keys):
            return None
        flat = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).reshape(len(keys), -1)
        parts, start = [], 0
        for kind, shape in self._layout:
            dtype = getattr(torch, kind)
            size = torch.Size(shape).numel() * dtype.itemsize
            part = flat[:, start : start + size].contiguous().view(dtype)
            parts.append(part.reshape(len(keys), *shape).to(device))
            start += size
        return parts

    def _write(self, keys: Sequence[bytes], made: Sequence[Tensor]) -> None:
        if self._file is None or any(len(tensor) != len(keys) for tensor in made):
            return
        layout = [(str(tensor.dtype).removeprefix("torch."), list(tensor.shape[1:])) for tensor in made]
        rows = [tensor.detach().cpu().contiguous().reshape(len(keys), -1).view(torch.uint8) for tensor in made]
        whole = torch.cat(rows, dim=1).numpy()
        if self._layout not in (None, layout) or self._bytes + whole.nbytes > self._limit:
            return
        with self._unless_refused():
            self._file.execute("BEGIN")
            if self._layout is None:
                self._file.execute("INSERT OR REPLACE INTO about VALUES ('layout', ?)", (json.dumps(layout),))
            pairs = [(key, row.tobytes()) for key, row in zip(keys, whole, strict=True)]
            self._file.executemany("INSERT OR REPLACE INTO outputs VALUES (?, ?)", pairs)
            self._file.execute("COMMIT")
            self._layout, self._bytes = layout, self._bytes + whole.nbytes

    @property
    def _row_bytes(self) -> int:
        return sum(torch.Size(shape).numel() * getattr(torch, kind).itemsize for kind, shape in self._layout or ())

    def _unless_refused(self) -> _Refusals:
        return _Refusals(self)


def cache_for(
    options: TrainOptions,
    stream: TrainingStream,
    folder: Path | None,
    identity: Mapping[str, Any],
    processes: Processes,
) -> TeacherCache | None:
    """What `options` ask for; of several processes, each has a file of its own.

    Args:
        folder: of the state, and
        identity: of the run, both known to the first process alone.

    Raises:
        UsageError: there is no folder for it, or images are others in each epoch.
    """
    if not options.cache_teacher:
        return None
    mixed = "mixup" if options.mixup else "cutmix" if options.cutmix else ""
    if mixed or getattr(stream, "varies", False):
        reason = f"`{mixed}` mixes them" if mixed else "they are cropped anew each time, unless `no_aug` is given"
        raise UsageError(f"`cache_teacher` needs images that are the same in each epoch: {reason}")
    known = processes.agreed(lambda: None if folder is None else [str(folder.resolve()), _digest(identity)])
    if known is None:
        raise UsageError("`cache_teacher` needs `state_dir`, the folder that it is written to")
    path = Path(known[0]) / NAME / f"{processes.rank}.sqlite"
    return TeacherCache(path, known[1], options.cache_teacher_gb * 1e9)


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _layout_of(text: str) -> list[tuple[str, list[int]]] | None:
    """Type and shape of each tensor of an image; raises ValueError or TypeError for what is none."""
    found = [(str(kind), [int(side) for side in shape]) for kind, shape in parse_json(text) or ()]
    for kind, shape in found:
        if not isinstance(getattr(torch, kind, None), torch.dtype) or min(shape, default=1) < 1:
            raise ValueError(f"{kind} {shape} is no tensor")
    return found or None


class _Refusals(suppress):
    """Passes over what the disk refuses, says it once, and keeps nothing more."""

    def __init__(self, cache: TeacherCache) -> None:
        super().__init__(sqlite3.Error, OSError)
        self._cache = cache

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        passed = bool(super().__exit__(kind, error, trace))  # type: ignore[arg-type]
        if error is not None and passed:
            logger.warning("what the original makes of the images is no longer kept on disk: %s", error)
            self._cache.close()
        return passed


def remove(path: Path) -> None:
    """Remove a file of the cache and what SQLite keeps beside it, and the folder with the last of them."""
    for suffix in _SUFFIXES:
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()
    with suppress(OSError):
        path.parent.rmdir()


def _keys(images: Tensor) -> list[bytes]:
    rows = images.detach().cpu().contiguous()
    about = f"{tuple(rows.shape[1:])} {rows.dtype}".encode()
    return [hashlib.sha256(about + row.numpy().tobytes()).digest() for row in rows]
