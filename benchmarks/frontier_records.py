"""The results file of the frontier benchmark: one JSON object a line, appended as results are computed."""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections.abc import Iterable
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
        checkpoint: whose entries will be added, with which settings.
        settings: entries of one checkpoint that differ in these are not comparable.

    Raises:
        SystemExit: the file holds entries of this checkpoint made with other settings.
    """

    def __init__(self, path: Path, checkpoint: str, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self.entries = read_entries([path] if path.exists() else [])
        for key, entry in self.entries.items():
            if key.checkpoint == checkpoint:
                _require_same(path, entry["settings"], self._settings)

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


def read_entries(paths: Iterable[Path]) -> dict[Key, dict[str, Any]]:
    """Entries of several files by key, gzipped ones (`.gz`) too; where two hold the same, that of the later file.

    Raises:
        SystemExit: a file cannot be read, or entries of one checkpoint were made with different settings.
    """
    entries: dict[Key, dict[str, Any]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for path in paths:
        for entry in filter(None, map(_parsed, _text(path).splitlines())):
            key = Key(**entry.pop("key"))
            _require_same(path, entry["settings"], settings.setdefault(key.checkpoint, entry["settings"]))
            entries[key] = entry
    return entries


def _text(path: Path) -> str:
    try:
        return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error


def _require_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found != wanted:
        changed = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise SystemExit(f"{path} holds results with other settings ({', '.join(changed)}): use another file")


def _parsed(line: str) -> dict[str, Any] | None:
    """One entry; None for a line that a killed run left half-written."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return entry


def add_results(parser: argparse.ArgumentParser) -> None:
    """The option `--results`, and `--report`."""
    text = "JSON-lines file; with --report several, also .gz"
    parser.add_argument("--results", nargs="+", type=Path, required=True, help=text)
    parser.add_argument("--report", action="store_true", help="print tables of what --results holds, and stop")


def check_results(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse files that results cannot be added to, or that are not there to report; ends the program."""
    if not args.report and (len(args.results) > 1 or args.results[0].suffix == ".gz"):
        parser.error("results are added to one file that is not compressed")
    if args.report and (missing := [str(path) for path in args.results if not path.is_file()]):
        parser.error(f"no such file: {', '.join(missing)}")
