"""What a reader of the fuzzer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitcompact.cli.app import main

from .mutate import Rng
from .seeds import Seeds

Read = Callable[[], object]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        make: writes a hostile file into an empty folder, and returns what reads it: a call of the library, which
            raises, or of the command line, which returns its exit code as `Exit`.
        share: of all cases, relative to the others.
        needs: names of packages, without which there are no such files.
    """

    name: str
    make: Callable[[Seeds, Path, Rng], Read]
    share: int = 10
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exit:
    """How a command ended."""

    code: int


def verb(*words: object) -> Read:
    """A call of the command line."""
    return lambda: Exit(main([str(word) for word in words]))
