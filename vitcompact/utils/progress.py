"""How long-running library code tells its caller where it stands; the default says nothing."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from tqdm.auto import tqdm


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


class InNotebooks:
    """Bars of tqdm where this runs in a notebook, nothing elsewhere: the default of what takes long."""

    def __init__(self) -> None:
        self._bars: list[Any] = []

    def start(self, task: str, total: float | None) -> None:
        if in_notebook():
            self._bars.append(tqdm(total=total, desc=task, leave=False))

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        if self._bars:
            self._bars[-1].update(amount)
            if note:
                self._bars[-1].set_postfix_str(note)

    def finish(self) -> None:
        if self._bars:
            self._bars.pop().close()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; a terminal's IPython is not."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


notebooks: Progress = InNotebooks()
