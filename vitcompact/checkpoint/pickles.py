"""Names the code that a pickled checkpoint would run, without running it."""

from __future__ import annotations

import argparse
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

# A file written by torch.save before the zip format is five pickles in a row: magic number, protocol version,
# system information, the object, the storage keys; the raw storages follow.
_MAX_PICKLES = 5
_HARMLESS = {"collections.OrderedDict", "argparse.Namespace", "builtins.set", "__builtin__.set"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}


def forbidden_globals(path: Path) -> list[str]:
    """Functions and classes (`module.name`) that a pickled checkpoint refers to and `weights_only` loading refuses.

    Empty when there are none or when the file is no pickle at all.
    """
    try:
        if zipfile.is_zipfile(path):
            with torch.serialization.safe_globals([argparse.Namespace]):
                return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        with path.open("rb") as stream:
            names = set(_globals_of_stream(stream))
    except Exception:  # a damaged file: the caller reports that, this only adds names
        return []
    return sorted(name for name in names if name not in _HARMLESS and not name.startswith("torch."))


def _globals_of_stream(stream: IO[bytes]) -> Iterator[str]:
    for _ in range(_MAX_PICKLES):
        try:
            yield from _globals_of_pickle(stream)
        except ValueError:  # the raw storages, or no pickle
            return


def _globals_of_pickle(stream: IO[bytes]) -> Iterator[str]:
    """Globals in all three spellings of the format; `STACK_GLOBAL` takes its two names from the stack."""
    names: list[str] = []
    memo: dict[int, str] = {}
    last_is_text = False
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield ".".join(str(argument).split(" ", 1))
        elif opcode.name == "STACK_GLOBAL" and len(names) >= 2:
            yield f"{names[-2]}.{names[-1]}"
        elif opcode.name == "MEMOIZE" and last_is_text:
            memo[len(memo)] = names[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = "?"
        elif opcode.name in _PUT and isinstance(argument, int):
            memo[argument] = names[-1] if last_is_text else "?"
        elif opcode.name in _GET and isinstance(argument, int):
            names.append(memo.get(argument, "?"))
        last_is_text = isinstance(argument, str) and opcode.name not in ("GLOBAL", "INST")
        if isinstance(argument, str) and last_is_text:
            names.append(argument)
