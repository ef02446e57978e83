"""One command in several processes, which torchrun started: the first speaks and writes, all end with one exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any

from vitcompact.cli.command import Invocation
from vitcompact.errors import UsageError
from vitcompact.options.shared import DIST_TIMEOUT
from vitcompact.utils.launch import Place

_POLITE = ("SIGINT", "SIGTERM", "SIGHUP")


def run_together(
    place: Place,
    parse: Callable[[], Invocation | int],
    work: Callable[[Invocation, Any], None],
    report: Callable[[BaseException], int],
) -> int:
    """Parse and carry out a command as one of several processes; its exit code.

    Args:
        work: carries it out, given the processes.
        report: says what ended it, and gives the exit code.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost process it would tell once more
    spoken_to = sys.stderr

    def aloud(error: BaseException) -> int:
        with redirect_stderr(spoken_to):
            return report(error)

    with _silent(place.rank > 0):
        parsed = _outcome(parse)
        options = parsed.options if isinstance(parsed, Invocation) else None
        processes = import_module("vitcompact.utils.processes")
        try:
            timeout, device = getattr(options, "dist_timeout", DIST_TIMEOUT), getattr(options, "device", "cpu")
            with processes.joined(place, timeout, device) as together:
                try:
                    return _carried_out(parsed, work, together)
                except BaseException as error:
                    _deaf()
                    said = processes.lost(error) if processes.is_lost(error) else error
                    return int(together.ended(lambda: aloud(said)))
        except BaseException as error:
            return aloud(error)


def _outcome(parse: Callable[[], Invocation | int]) -> Invocation | int | BaseException:
    """What parsing gives or raises: words that one process cannot read, such as a file, end all of them."""
    try:
        return parse()
    except BaseException as error:
        return error


def _carried_out(
    parsed: Invocation | int | BaseException, work: Callable[[Invocation, Any], None], together: Any
) -> int:
    if isinstance(parsed, BaseException):
        raise parsed
    if isinstance(parsed, Invocation):
        if "dist_timeout" not in parsed.verb.options:
            raise UsageError(f"{parsed.verb.name} runs in one process: start it without torchrun")
        work(parsed, together)
    together.wait()
    return 0 if isinstance(parsed, Invocation) else parsed


def _deaf() -> None:
    """Hear no signals any more: torchrun sends them to all that are left as soon as one has ended."""
    for name in _POLITE:
        if name in signal.Signals.__members__:
            signal.signal(signal.Signals[name], signal.SIG_IGN)


@contextmanager
def _silent(wanted: bool) -> Iterator[None]:
    """Nothing of what this process says is seen."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
