"""Exported files where a verb takes a MODEL: opened once, with what they say of their original."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitcompact.checkpoint import LoadedModel, Provenance, SourceOptions, load_source
from vitcompact.cli.spoken import flags
from vitcompact.errors import UsageError
from vitcompact.exporting import ExportedModel, is_exported, open_exported
from vitcompact.utils.reading import user_path


def load_model(source: str, options: SourceOptions | None = None) -> LoadedModel:
    """Any SOURCE, exported files among them.

    Raises:
        UsageError, CheckpointError: see `load_source` and `open_exported`; options that an exported file does not take.
    """
    if not is_exported(source):
        return load_source(source, options)
    for field in dataclasses.fields(SourceOptions):
        if options is not None and field.name != "seed" and getattr(options, field.name) != field.default:
            raise UsageError(f"{source} is an exported file, which is as it is: leave out {flags()[field.name]}")
    model = _opened(source)
    return LoadedModel(model, Provenance.of_file(source, "file", model.description.architecture, model.path))


def origin_of(source: str) -> tuple[Provenance | None, Mapping[str, Any]]:
    """Where an exported file's model was made from, and how that is read."""
    told = _opened(source).description
    return told.original, told.original_options


def _opened(source: str) -> ExportedModel:
    path = user_path(source)
    if not path.is_file():
        return open_exported(path)  # which says that there is none
    found = path.stat()
    return _open_once(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2)
def _open_once(path: Path, time: int, size: int) -> ExportedModel:
    return open_exported(path)
