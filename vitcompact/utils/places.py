"""Paths in what others may read: names without the folders of this machine, and a way back for whoever is on it.

What is published names a path by its last name alone. Where it lies is said beside it: relative to the folder of the
published file, or where nothing but the root is above both, by a digest that only this machine can look up (a small
file below the user's cache folder, or `$VITCOMPACT_CACHE`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vitcompact.errors import UsageError
from vitcompact.utils.files import write_file
from vitcompact.utils.reading import user_path

DIR_PREFIX = "local-dir:"
KEPT = "place:"
"""Begins what is looked up on this machine."""
PLACES = "places"
"""Key in documents: where paths lie that are named without their folders."""
_SEPARATOR = "/"


def is_absolute(text: str) -> bool:
    """Whether a text is an absolute path, with or without the prefix of a directory in timm's hub layout."""
    _, path = _split(text)
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute() or _at_home(path)


def _at_home(path: str) -> bool:
    """Whether a path begins with the home of a user whom this machine knows."""
    with suppress(RuntimeError, ValueError):
        return path.startswith("~") and Path(path).expanduser().is_absolute()
    return False


def without_folders(text: str) -> str:
    """An absolute path as its last name alone; any other text as it is."""
    if not is_absolute(text):
        return text
    prefix, path = _split(text)
    posix = PurePosixPath(path).is_absolute() or path[0] == "~"
    return prefix + ((PurePosixPath(path) if posix else PureWindowsPath(path)).name or "root")


def published(document: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A JSON document without absolute paths, and where they lie, by their places in the document.

    Args:
        folder: of the file that the document goes into.
    """
    places: dict[str, str] = {}

    def cleaned(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            inner = f"{key}{_SEPARATOR}" if key else ""
            return {name: cleaned(item, f"{inner}{name}") for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [cleaned(item, f"{key}{_SEPARATOR}{i}") for i, item in enumerate(value)]
        if isinstance(value, str) and is_absolute(value):
            places[key] = _place_of(_split(value)[1], folder)
            return without_folders(value)
        return value

    result: dict[str, Any] = cleaned(document, "")
    return result, places


def found(document: dict[str, Any], places: object, folder: Path) -> dict[str, Any]:
    """The document with absolute paths again, as far as they are known here; the rest stays as it was published.

    Args:
        places: what `published` gave; anything else in it is passed over.
        folder: where the file is now.
    """
    for key, place in places.items() if isinstance(places, Mapping) else ():
        path = _path_at(place, folder) if isinstance(place, str) else None
        holder, name = _holder(document, str(key).split(_SEPARATOR))
        if path is None or holder is None or not isinstance(holder[name], str):
            continue
        prefix, bare = _split(holder[name])
        if PurePosixPath(path).name == bare:
            holder[name] = prefix + path
    return document


def _place_of(text: str, folder: Path) -> str:
    path = Path(text).expanduser()
    path = path.parent.resolve() / path.name  # a link may have a name that says more than its target's
    folder = folder.resolve()
    with suppress(ValueError):  # another drive
        if Path(os.path.commonpath((path, folder))) != Path(path.anchor):
            return Path(os.path.relpath(path, folder)).as_posix()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    with suppress(OSError, UsageError):  # it is a convenience: whoever misses it names the path again
        write_file(_cache() / digest, str(path))
    return KEPT + digest


def _path_at(place: str, folder: Path) -> str | None:
    if not place.startswith(KEPT):
        return None if is_absolute(place) else os.path.normpath(folder.resolve() / place)
    digest = place.removeprefix(KEPT)
    if not digest.isalnum():
        return None
    try:
        path = (_cache() / digest).read_text(encoding="utf-8")
    except (OSError, ValueError, UsageError):
        return None
    return path if hashlib.sha256(path.encode()).hexdigest()[:32] == digest else None


def _cache() -> Path:
    own = os.environ.get("VITCOMPACT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(own or Path(shared) / "vitcompact") / "places"


def _holder(document: Any, keys: list[str]) -> tuple[Any, Any]:
    """The container of a value and its key there, or None where there is none."""
    for name in _steps(document, keys[:-1]):
        document = name
    last: Any = keys[-1]
    if isinstance(document, list) and last.isdecimal() and int(last) < len(document):
        return document, int(last)
    return (document, last) if isinstance(document, dict) and last in document else (None, None)


def _steps(document: Any, keys: list[str]) -> Iterator[Any]:
    for key in keys:
        if isinstance(document, list):
            document = document[int(key)] if key.isdecimal() and int(key) < len(document) else None
        else:
            document = document.get(key) if isinstance(document, dict) else None
        yield document


def _split(text: str) -> tuple[str, str]:
    """The prefix of a directory in timm's hub layout, and the path."""
    stripped = text.strip()
    if stripped.lower().startswith(DIR_PREFIX):
        return stripped[: len(DIR_PREFIX)], stripped[len(DIR_PREFIX) :].strip()
    return "", stripped
