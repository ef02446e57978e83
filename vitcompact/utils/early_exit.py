"""Ctrl-C while modules are loading, or while Python ends: at most a line and an exit code, no traceback.

The first are loaded before the command line's own error boundary is there; torch and timm, which take seconds, may
turn an exception in their middle into another, and clear up when all is done. Nothing but the standard library is
imported here, and nothing is touched where the package is used as a library.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

PROGRAM = "vitcompact"
EXIT_INTERRUPTED = 130


def watch_loading() -> None:
    """Until `loaded`, leave at once and quietly on SIGINT, where this process is the command line."""
    if _interrupted_by_python():
        signal.signal(signal.SIGINT, _leave)


def loaded() -> None:
    """Give SIGINT back: from here on it is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) in (_leave, _nothing):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ending() -> None:
    """From here on SIGINT does nothing, where this process is the command line: all has been said."""
    if _interrupted_by_python():
        signal.signal(signal.SIGINT, _nothing)


def is_program(argv: list[str], orig_argv: list[str]) -> bool:
    """Whether a process was started as `vitcompact` or as `python -m vitcompact`."""
    module = orig_argv[orig_argv.index("-m") + 1 :][:1] if "-m" in orig_argv else []
    return module == [PROGRAM] or Path(argv[0] if argv else "").stem == PROGRAM


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def _interrupted_by_python() -> bool:
    ours = is_program(sys.argv, sys.orig_argv) and threading.current_thread() is threading.main_thread()
    return ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
