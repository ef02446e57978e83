"""What has to be true of a folder after a command was ended in it, and after the next one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import safetensors

from vitcompact.training.aside import REPLACED
from vitcompact.utils.files import restored

STATES = ("last.safetensors", "best.safetensors")
"""Of a training that can be resumed."""
COURSE = ("steps.jsonl", "summary.csv")
"""Of the same, written line by line while it runs."""
Units = dict[str, str]
"""What belongs together (a model's directory, any other file) by its path, with a digest of its content."""


def units(box: Path) -> Units:
    """Everything in a folder that has a final name."""
    found: Units = {}
    for path in sorted(_visible(box)):
        if (path / "config.json").is_file():
            parts = sorted(part for part in path.iterdir() if part.is_file())
            whole = {"config.json", "model.safetensors"} <= {part.name for part in parts}
            found[str(path.relative_to(box))] = digest(*parts) if whole else "half"
        elif path.is_file() and not (path.parent / "config.json").is_file():
            found[str(path.relative_to(box))] = digest(path)
    return found


def _visible(box: Path) -> Iterator[Path]:
    for path in box.iterdir():
        if not path.name.startswith(".") and path.name != "tmp":
            yield path
            if path.is_dir():
                yield from _visible(path)


def digest(*paths: Path) -> str:
    """Of what files hold, times left out."""
    return hashlib.sha256(b"\0".join(_content(path) for path in paths)).hexdigest()[:16]


_TIMES = re.compile(rb"(seconds(?:\\?\": | \| ))[-+.e0-9]+|\d{4}-\d\d-\d\d \d\d:\d\d \w+")
_ASKED = re.compile(
    rb'"(serial|overwrite|resume)": [^,\n]+|vitcompact (analyze|convert|finetune|fold|compact|eval)[^\n<"]*'
)
_FIGURES = re.compile(rb'"(images_per_sec|seconds)": [^,}]+|(?<=,)[^,\n]*,[^,\n]*(?=\n)')
"""Of a clock: in a line of steps, and the last two cells of a row."""


def _content(path: Path) -> bytes:
    """What a file holds, but for what tells one run from the run after it: times, its number, how it was asked for."""
    content = path.read_bytes()
    if path.name in COURSE:
        content = _FIGURES.sub(b"", content)
    if path.name in STATES:  # times change the length of the header, and metadata have no order
        length = int.from_bytes(content[:8], "little")
        with suppress(ValueError):
            header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True)
            content = header.encode() + content[8 + length :]
    elif path.suffix in (".json", ".md", ".html"):
        content = _ASKED.sub(b"", content)
    return _TIMES.sub(rb"\1", content)


def names(box: Path) -> set[str]:
    """Every path in a folder, hidden ones and those of temporary files included."""
    return {str(path.relative_to(box)) for path in box.rglob("*")}


def hidden(box: Path) -> list[str]:
    """What is not finished: hidden names, and everything among the temporary files."""
    return sorted(name for name in names(box) if "/." in f"/{name}" or name.startswith("tmp/"))


def contents(box: Path, volatile: Collection[str]) -> frozenset[tuple[str, str]]:
    """Every path with a digest of its content, but for those whose content is never the same."""
    return frozenset(
        (name, digest(box / name) if (box / name).is_file() and name not in volatile else "") for name in names(box)
    )


@dataclass(frozen=True)
class Expected:
    """What a case's folder holds before its command and after it.

    Attributes:
        volatile: units whose content no two runs have in common: of these only the form is looked at.
        listing: every path after the command.
        passing: what units may hold on the way, by their names.
    """

    before: Units
    after: Units
    volatile: frozenset[str]
    listing: frozenset[str]
    passing: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def faults_of(self, box: Path, stopped: bool = False) -> list[str]:
        """What is lost or half-written, as every reader of ours finds it; nothing where all is old or new.

        Args:
            stopped: a training was asked to end, and may have kept a state of any step.
        """
        found: list[str] = []
        for name in {**self.before, **self.after}:
            restored(box / name)
        now = units(box)
        aside = {name.replace(f"/{REPLACED}/", "/"): now.pop(name) for name in [*now] if f"/{REPLACED}/" in name}
        for name in sorted({**self.before, **self.after, **now}):
            allowed = {units_[name] for units_ in (self.before, self.after) if name in units_}
            allowed |= self.passing.get(name, frozenset())
            if name not in now:
                if name in self.before and aside.get(name) != self.before[name]:
                    found.append(f"{name} is lost")
            elif not allowed:
                found.append(f"{name} is new to this place")
            elif name in self.volatile or (stopped and name.endswith(STATES)) or name.endswith(COURSE):
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
        elif path.name in COURSE:
            return path.read_bytes().endswith(b"\n") or not path.stat().st_size
        elif path.suffix == ".html":
            return path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    except (OSError, ValueError, safetensors.SafetensorError):
        return False
    return path.stat().st_size > 0
