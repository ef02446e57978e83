"""`vitcompact.json`: what a directory of ours was made from, how, and what was measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from vitcompact.checkpoint.provenance import Provenance
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.plans.schema import Plan
from vitcompact.utils.files import restored
from vitcompact.utils.places import PLACES, found, published
from vitcompact.utils.plain import to_plain
from vitcompact.utils.reading import read_json, user_path
from vitcompact.utils.typed import typed
from vitcompact.version import __version__

RECORD_NAME = "vitcompact.json"
RECORD_FORMAT = 1
FILES = ("README.md", "config.json", "model.safetensors", RECORD_NAME)
"""What `save` writes into a directory; records written before they listed it mean these."""


@dataclass(frozen=True)
class Record:
    """The content of a `vitcompact.json`.

    Attributes:
        base: timm name of the original architecture.
        plan: what was done to it.
        provenance: where the original weights came from, if known.
        options: effective options of the command that wrote the directory.
        results: what was measured.
        versions: releases of vitcompact, torch, timm and Python that wrote it.
        files: names of the files that were written beside it, itself included: all that `overwrite` may remove.
    """

    base: str
    plan: Plan
    provenance: Provenance | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: current_versions())
    files: tuple[str, ...] = FILES

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Record.from_json` reads it back."""
        return {
            "format": RECORD_FORMAT,
            "versions": dict(self.versions),
            "base": self.base,
            "provenance": self.provenance.to_json() if self.provenance is not None else None,
            "options": to_plain(self.options),
            "results": to_plain(self.results),
            "plan": self.plan.to_json(),
            "files": list(self.files),
        }

    def published(self, folder: Path) -> dict[str, Any]:
        """The same without absolute paths, for a file in `folder`; `read_record` finds them again on this machine."""
        document, places = published(self.to_json(), folder)
        return {**document, PLACES: places} if places else document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: malformed, or written by a release that this one does not know.
        """
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        if type(found) is not int or found != RECORD_FORMAT:
            raise CheckpointError(f"format {found!r} is not supported; this release reads format {RECORD_FORMAT}")
        try:
            told = typed(_Told, {key: value for key, value in data.items() if key != "format"}, "the record")
            plan = Plan.from_json(told.plan)
        except (UsageError, ValueError) as error:
            raise CheckpointError(str(error)) from error
        origin = None if told.provenance is None else Provenance.from_json(told.provenance)
        return cls(told.base, plan, origin, told.options, told.results, told.versions, told.files)


@dataclass(frozen=True)
class _Told:
    """The types of a record's fields as they stand in its file."""

    base: str
    plan: Mapping[str, Any]
    options: Mapping[str, Any]
    results: Mapping[str, Any]
    versions: Mapping[str, str]
    provenance: Mapping[str, Any] | None = None
    files: tuple[str, ...] = FILES
    places: Mapping[str, str] = field(default_factory=dict)  # read before: see `_located`


def read_record(directory: str | Path) -> Record:
    """Read the `vitcompact.json` of a directory that `save` wrote.

    Raises:
        UsageError: no such directory, or not one of ours.
        CheckpointError: the file is damaged.
    """
    path = restored(user_path(directory)) / RECORD_NAME
    if not path.is_file():
        raise UsageError(f"{directory} is not a vitcompact checkpoint: it holds no {RECORD_NAME}")
    try:
        return Record.from_json(_located(read_json(path), path.parent))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _located(document: Any, folder: Path) -> Any:
    """A document of ours in `folder` with the paths that were left out of it, as far as this machine knows them."""
    if not isinstance(document, dict):
        return document
    return found(document, document.get(PLACES), folder)


def current_versions() -> dict[str, str]:
    """Releases of vitcompact, torch, timm and Python that are running."""
    return {
        "vitcompact": __version__,
        "torch": str(torch.__version__),
        "timm": str(timm.__version__),
        "python": platform.python_version(),
    }
