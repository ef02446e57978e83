"""The results file of the frontier benchmark: one JSON object a line, appended as results are computed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Key:
    """What an entry is of: `target` is the share of MACs to keep, `stage` raw or finetuned."""

    checkpoint: str
    method: str
    target: float
    stage: str
    seed: int


class Records:
    """Entries by key.

    Args:
        path: the file; it is made with the first entry.
        checkpoint: whose entries will be added, with which settings; None only reads.
        settings: entries of one checkpoint that differ in these are not comparable.

    Raises:
        SystemExit: the file holds entries of this checkpoint made with other settings.
    """

    def __init__(self, path: Path, checkpoint: str | None = None, settings: dict[str, Any] | None = None) -> None:
        self._path, self._settings = path, settings or {}
        self.entries: dict[Key, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            entry = _parsed(line)
            if entry is not None:
                self.entries[Key(**entry.pop("key"))] = entry
        for key, entry in self.entries.items():
            if key.checkpoint == checkpoint and entry["settings"] != self._settings:
                names = {*entry["settings"], *self._settings}
                changed = sorted(n for n in names if entry["settings"].get(n) != self._settings.get(n))
                raise SystemExit(f"{path} holds results with other settings ({', '.join(changed)}): use another file")

    def has(self, key: Key) -> bool:
        """Whether this was computed."""
        return key in self.entries

    def add(self, key: Key, entry: dict[str, Any]) -> None:
        """Append an entry, and keep it on disk at once."""
        self.entries[key] = {**entry, "settings": self._settings}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps({"key": asdict(key), **self.entries[key]}) + "\n")


def _parsed(line: str) -> dict[str, Any] | None:
    """One entry; None for a line that a killed run left half-written."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return entry
