"""What has to be true of a folder after a command was ended in it, and after the next one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors

from vitcompact.utils.files import restored

Units = dict[str, str]
"""What belongs together (a model's directory, any other file) by its path, with a digest of its content."""


def units(box: Path) -> Units:
    """Everything in a folder that has a final name."""
    found: Units = {}
    for path in sorted(_visible(box)):
        if (path / "config.json").is_file():
            parts = [path / "config.json", path / "model.safetensors"]
            found[str(path.relative_to(box))] = _digest(*parts) if parts[1].is_file() else "half"
        elif path.is_file() and not (path.parent / "config.json").is_file():
            found[str(path.relative_to(box))] = _digest(path)
    return found


def _visible(box: Path) -> Iterator[Path]:
    for path in box.iterdir():
        if not path.name.startswith(".") and path.name != "tmp":
            yield path
            if path.is_dir():
                yield from _visible(path)


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(_content(path) for path in paths)).hexdigest()[:16]


def _content(path: Path) -> bytes:
    """What a file holds, but for what tells one run from the run after it: its number, and how it was asked for."""
    content = path.read_bytes()
    told = path.name in ("workspace.json", "options.json")
    return re.sub(rb'"(serial|overwrite|resume)": [^,\n]+', b"", content) if told else content


def names(box: Path) -> set[str]:
    """Every path in a folder, hidden ones and those of temporary files included."""
    return {str(path.relative_to(box)) for path in box.rglob("*")}


def hidden(box: Path) -> list[str]:
    """What is not finished: hidden names, and everything among the temporary files."""
    return sorted(name for name in names(box) if "/." in f"/{name}" or name.startswith("tmp/"))


def contents(box: Path, volatile: Collection[str]) -> frozenset[tuple[str, str]]:
    """Every path with a digest of its content, but for those whose content is never the same."""
    return frozenset(
        (name, _digest(box / name) if (box / name).is_file() and name not in volatile else "") for name in names(box)
    )


@dataclass(frozen=True)
class Expected:
    """What a case's folder holds before its command and after it.

    Attributes:
        volatile: units whose content has times in it, or is what was best so far: of these only the form is looked at.
        listing: every path after the command.
    """

    before: Units
    after: Units
    volatile: frozenset[str]
    listing: frozenset[str]

    def faults_of(self, box: Path) -> list[str]:
        """What is lost or half-written, as every reader of ours finds it; nothing where all is old or new."""
        found: list[str] = []
        for name in {**self.before, **self.after}:
            restored(box / name)
        now = units(box)
        for name in sorted({**self.before, **self.after, **now}):
            allowed = {units_[name] for units_ in (self.before, self.after) if name in units_}
            if name not in now:
                if name in self.before:
                    found.append(f"{name} is lost")
            elif not allowed:
                found.append(f"{name} is new to this place")
            elif name in self.volatile:
                found += [f"{name} is damaged"] if not _sound(box / name) else []
            elif now[name] not in allowed:
                found.append(f"{name} is neither old nor new")
        return found

    def faults_at_end(self, box: Path) -> list[str]:
        """What is not as a command leaves it that nobody interrupted."""
        now = units(box)
        wrong = [name for name, digest in self.after.items() if name not in self.volatile and now.get(name) != digest]
        left = sorted(names(box) - self.listing)
        gone = sorted(self.listing - names(box))
        return (
            [f"{name} is not as it should be" for name in wrong]
            + [f"{name} is left over" for name in left]
            + [f"{name} is missing" for name in gone]
        )


def _sound(path: Path) -> bool:
    try:
        if path.is_dir():
            return (path / "model.safetensors").is_file() and _sound(path / "config.json")
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt"):
                pass
        elif path.suffix == ".html":
            return path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    except (OSError, ValueError, safetensors.SafetensorError):
        return False
    return path.stat().st_size > 0
