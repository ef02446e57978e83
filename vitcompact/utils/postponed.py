"""Signals wait while something is done that must be done whole: taking a lock, giving a file its name, cleaning up.

What is postponed are the handlers of Python (Ctrl-C, and whatever the command line made of a polite kill), which would
raise an exception between two lines. A signal that ends the process outright does so.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Postponed:
    """Between `hold` and `release`, signals are noted; `release` lets the first of them through.

    Only the main thread hears signals: in any other, nothing is done.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._came: signal.Signals | None = None

    def hold(self) -> None:
        """From here on signals wait; nothing more where they do already."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__):
            handler = signal.getsignal(number)
            if callable(handler):
                self._previous[number] = handler
                signal.signal(number, self._note)

    def release(self) -> None:
        """Let signals through again; one that came acts now, as it would have."""
        try:
            for number, handler in [*self._previous.items()]:
                signal.signal(number, handler)
                del self._previous[number]
        finally:
            if self._previous:  # one came just now
                self.release()
        came, self._came = self._came, None
        if came is not None:
            signal.raise_signal(came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or signal.Signals(number)


@contextmanager
def whole(begin: Callable[[], T], end: Callable[[], object]) -> Iterator[T]:
    """What `begin` returns; `end` follows, also where `begin` failed. Signals wait during both, not in between."""
    signals = Postponed()
    try:
        signals.hold()
        found = begin()
        signals.release()
        yield found
    finally:
        try:
            signals.hold()
        finally:  # also where one came just before it was heard
            try:
                end()
            finally:
                signals.release()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until the end."""
    signals = Postponed()
    try:
        signals.hold()
        yield
    finally:
        signals.release()
