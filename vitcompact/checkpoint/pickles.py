"""Names the code that a pickled checkpoint would run, without running it."""

from __future__ import annotations

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

# A file written by torch.save before the zip format is five pickles in a row: magic number, protocol version,
# system information, the object, the storage keys; the raw storages follow.
_MAX_PICKLES = 5
_HARMLESS = {
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
}


def forbidden_globals(path: Path) -> list[str]:
    """Functions and classes (`module.name`) that a pickled checkpoint refers to and `weights_only` loading refuses.

    Empty when there are none or when the file is no pickle at all. The error of `torch.load` names the first of them in
    pickles of protocols 1 to 3 only: it gives up on the opcodes of the others before it has seen a name.
    """
    return [name for name in named_globals(path) if name not in _HARMLESS and not name.startswith("torch.")]


def named_globals(path: Path) -> list[str]:
    """All functions and classes (`module.name`) that a pickled checkpoint refers to, sorted."""
    names: set[str] = set()
    with suppress(Exception):  # no pickle any more, or damage: the caller reports that, this only adds names
        for name in _globals(path):
            names.add(name)
    return sorted(names)


def _globals(path: Path) -> Iterator[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith("/data.pkl"):
                    with archive.open(entry) as stream:
                        yield from _globals_of_pickle(stream)
    else:
        with path.open("rb") as stream:
            for _ in range(_MAX_PICKLES):
                yield from _globals_of_pickle(stream)


def _present_name(module: str, name: str) -> str:
    """Pickles keep names of Python 2 (`__builtin__.long`), which `torch.load` translates as Python does."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _globals_of_pickle(stream: IO[bytes]) -> Iterator[str]:
    """Globals in all three spellings of the format; `STACK_GLOBAL` takes its two names from the stack."""
    texts: list[str] = []
    memo: dict[Any, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield _present_name(*str(argument).partition(" ")[::2])
        elif opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
            yield ".".join(texts[-2:])
        elif opcode.name == "MEMOIZE" or opcode.name.endswith("PUT"):
            # What is put is a text only right after it was read. Whatever else is put is never asked for as a name.
            memo[len(memo) if argument is None else argument] = texts[-1] if texts else ""
        elif opcode.name.endswith("GET"):
            texts.append(memo.get(argument, ""))
        elif isinstance(argument, str):
            texts.append(argument)
