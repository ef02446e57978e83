"""Every change of the disk as a numbered event, and what may happen at one: an end, a signal, an error, a pause.

Python announces such changes to audit hooks before they are made. Libraries in other languages do not: their writers
are announced here, before and after.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

CHANGES = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "fcntl.flock",
    "vitcompact.exchange",
    "native.write",
    "native.written",
}
REMOVALS = {"os.remove", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FAULTS = {"EXDEV": {"os.rename", "os.link", "vitcompact.exchange"}}
"""Errors that only some changes can end in; of the others, a full disk refuses all but removals."""
LINES = tuple(f"vitcompact/utils/{name}.py" for name in ("files", "locks", "scratch", "postponed"))
"""The code that writes, locks and cleans up."""


@dataclass(frozen=True)
class Event:
    """One change of the disk, before it is made."""

    name: str
    path: str

    @property
    def opens(self) -> bool:
        """Whether a file is opened to be written, or created."""
        return self.name == "open"

    def can(self, fault: str) -> bool:
        """Whether the system may answer it with an error of this name."""
        if self.name in ("native.written", "fcntl.flock"):
            return False
        return self.name in _FAULTS.get(fault, {self.name}) and not (fault == "ENOSPC" and self.name in REMOVALS)


@dataclass
class Watch:
    """Counts the changes of the disk of this process, and does something before one of them.

    Args:
        at: the number of the event at which to act; None only counts.
        act: what to do there; what it raises takes the place of the change.
        events: those seen so far.
    """

    at: int | None = None
    act: Callable[[Event], None] | None = None
    events: list[Event] = field(default_factory=list)
    _inside: bool = False

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        """The audit hook."""
        if self._inside or (name != "open" and name not in CHANGES):
            return
        self._inside = True
        try:
            event = _event(name, args)
            if event is not None:
                self.events.append(event)
                if len(self.events) - 1 == self.at and self.act is not None:
                    self.act(event)
        finally:
            self._inside = False


def _event(name: str, args: tuple[Any, ...]) -> Event | None:
    """The change that an audit event announces, None where it reads, or is about no file."""
    path = args[0] if args else ""
    if name == "open":
        flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
        if isinstance(path, int) or not flags & _WRITING or str(path).startswith(("/dev/", "/proc/")):
            return None
    return Event(name, os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path))


def kill(event: Event) -> None:
    """As a power button."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear(event: Event) -> None:
    """End in the middle of the change: the file is there, with nothing or half of its content."""
    if event.opens:
        os.close(os.open(event.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
    elif event.name == "native.written":
        os.truncate(event.path, Path(event.path).stat().st_size // 2)
    kill(event)


def can_tear(event: Event) -> bool:
    """Whether a change has a middle."""
    return event.name == "native.written" or (event.opens and "-lock" not in event.path)


def fault(name: str) -> Callable[[Event], None]:
    """The change is refused with an error of the system."""
    number = getattr(errno, name)

    def act(event: Event) -> None:
        raise OSError(number, os.strerror(number), event.path)

    return act


def send(number: signal.Signals) -> Callable[[Event], None]:
    """A signal arrives."""

    def act(event: Event) -> None:
        signal.raise_signal(number)

    return act


def announce_native_writers() -> None:
    """Let the writers of other libraries announce what they write, and fail as they do."""
    import safetensors.torch
    import torch

    def announced(write: Callable[..., Any], path_of: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = str(path_of(*args, **kwargs))
            try:
                sys.audit("native.write", path)
            except OSError as refused:
                raise error(f"I/O error: {refused.strerror} (os error {refused.errno})") from refused
            found = write(*args, **kwargs)
            sys.audit("native.written", path)
            return found

        return call

    safetensors.torch.serialize_file = announced(
        safetensors.torch.serialize_file,
        lambda tensors, path, *_, **__: path,
        safetensors.SafetensorError,
    )
    torch.export.save = announced(torch.export.save, lambda program, path, **_: path, RuntimeError)


class LineSignals:
    """A signal before the n-th line that the code which writes and locks comes to; `at` None only counts."""

    def __init__(self, at: int | None, number: signal.Signals = signal.SIGINT) -> None:
        self.at, self.number, self.count = at, number, 0

    def __call__(self, frame: FrameType, what: str, arg: Any) -> Any:
        """The trace function."""
        if not frame.f_code.co_filename.endswith(LINES):
            return None
        return self._in_line

    def _in_line(self, frame: FrameType, what: str, arg: Any) -> Any:
        if what == "line":
            if self.count == self.at:
                self.count += 1
                signal.raise_signal(self.number)
            else:
                self.count += 1
        return self._in_line
