"""How long-running library code tells its caller where it stands; the default says nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives progress; the command line draws it, the library default (`silent`) ignores it."""

    def start(self, task: str, total: float | None) -> None:
        """A task of `total` units begins (None: unknown)."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """`amount` units of the current task are done; `note` is a short status such as 'block 3: rank 192'."""

    def finish(self) -> None:
        """The current task has ended."""


class Silent:
    """A progress receiver that ignores everything."""

    def start(self, task: str, total: float | None) -> None:
        pass

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        pass

    def finish(self) -> None:
        pass


silent: Progress = Silent()
