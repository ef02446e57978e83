"""How a report was made: the command, the checkpoint, when and with which releases; no folders of this machine."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vitcompact.checkpoint import Provenance
from vitcompact.checkpoint.record import current_versions
from vitcompact.cli.command import Options
from vitcompact.cli.inputs import Original
from vitcompact.cli.spoken import flagged
from vitcompact.utils.places import without_folders

_NOT_SAID = ("json", "quiet", "verbose", "config", "report", "workdir", "overwrite")


def made_by(verb: str, options: Options, given: frozenset[str], origin: Provenance | None) -> dict[str, Any]:
    """Names and values for the end of a page.

    Args:
        given: names of the options that were given.
        origin: of the checkpoint that the verb worked on.
    """
    found: dict[str, Any] = {"command": command_of(verb, options, given)}
    if origin is not None:
        found["checkpoint"] = without_folders(origin.source)
        found["architecture"] = origin.architecture
        found["SHA-256"] = origin.sha256
    versions: Mapping[str, str] = current_versions()
    found["date"] = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    found["made with"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return found


def command_of(verb: str, options: Options, given: frozenset[str]) -> str:
    """The command as it would be typed beside the files that it names."""
    words = ["vitcompact", verb, *map(str, getattr(options, "sources", None) or ())]
    words += [str(getattr(options, name)) for name in ("source", "out") if name in given and _has(options, name)]
    for field in dataclasses.fields(options):
        if field.name in given and field.name not in ("source", "out", "sources", *_NOT_SAID):
            words += flagged(field.name, getattr(options, field.name))
    return shlex.join(without_folders(word) for word in words)


def _has(options: Options, name: str) -> bool:
    return getattr(options, name, None) is not None


def heading(verb: str, options: Options, given: frozenset[str], original: Original) -> dict[str, Any]:
    """Title and end of a page about one model."""
    return {
        "title": name_of(original.record.source),
        "made": made_by(verb, options, given, original.provenance),
    }


def name_of(source: object) -> str:
    """A model's name for people: the last name of its path."""
    named = without_folders(str(source)).rstrip("/").removeprefix("local-dir:")
    return named.rpartition("/")[2] if Path(named).exists() else named or "a model"


def distinct(sources: Sequence[str]) -> list[str]:
    """Names for people that tell models apart: as many of the last names of their paths as that takes."""
    whole = [[part for part in source.removeprefix("local-dir:").split("/") if part] or [source] for source in sources]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return list(sources)
