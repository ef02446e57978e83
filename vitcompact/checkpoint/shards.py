"""Weights in several files with an index beside them, as Hugging Face libraries write them."""

from __future__ import annotations

import re
from pathlib import Path

from vitcompact.errors import CheckpointError
from vitcompact.utils.reading import read_json

INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")


def index_of(path: Path) -> Path | None:
    """The index that a file belongs to: itself, or the one beside a file whose name is that of a shard; else None."""
    if path.name.lower().endswith(INDEX_SUFFIX):
        return path
    found = _SHARD.fullmatch(path.name)
    index = path.with_name(f"{found[1]}{found[2]}{INDEX_SUFFIX}") if found else None
    return index if index is not None and index.is_file() else None


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that the weights of `path` are in: itself, or an index and the shards that it names.

    Raises:
        CheckpointError: the index is damaged, or names files that are elsewhere or missing.
    """
    index = index_of(path)
    return (path,) if index is None else (index, *_shards(index))


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: expected a weight_map of names to files") from error
    if not names or not all(map(_is_file_name, names)):
        raise CheckpointError(f"{index} is refused: expected names of files beside it, got {names[:3]}")
    shards = [index.with_name(name) for name in names]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(f"{index} names {len(names)} files, of which are missing: {', '.join(missing[:3])}")
    return shards


def _is_file_name(name: object) -> bool:
    """Of a file beside the index, and of one that can be."""
    return isinstance(name, str) and bool(name) and name == Path(name).name and "\0" not in name and len(name) < 256
