"""What is said where: results on stdout; notes, warnings, errors and progress on stderr."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vitcompact.cli.progress import BarProgress, PlainProgress
from vitcompact.cli.spoken import spoken
from vitcompact.errors import message, printable
from vitcompact.utils.files import json_text
from vitcompact.utils.plain import to_plain
from vitcompact.utils.progress import Progress, silent

_PIPED_WIDTH = 100


class Console:
    """The two streams of one command.

    Args:
        as_json: stdout is one JSON document.
        quiet: neither notes nor progress.
        verbose: also what is logged below warnings, and tracebacks.
        processes: those that torchrun started (`utils.processes`), None for one alone.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, processes: Any = None
    ) -> None:
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self.processes = processes
        self._stdout = sys.stdout
        self._out = _rich(stderr=False)
        self._err = _rich(stderr=True)
        self.progress: Progress = silent
        if not quiet:
            self.progress = BarProgress(self._err) if self._err.is_terminal else PlainProgress(self.note)

    def note(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            self._line(Text(message(text), style="dim"))

    def warning(self, text: str) -> None:
        """A line that should not be missed."""
        self._line(Text.assemble(("warning: ", "bold yellow"), message(text)))

    def error(self, text: str) -> None:
        """What ended the command."""
        self._line(Text.assemble(("error: ", "bold red"), message(text)))

    def plain(self, text: str) -> None:
        """Text on stderr as it is, such as a traceback."""
        self._line(Text(printable(text)))

    def result(self, document: Mapping[str, Any], *renderables: RenderableType) -> None:
        """The outcome, on stdout: `document` with --json, else the renderables."""
        self.close()
        if self.as_json:
            self._stdout.write(json_text(to_plain(document)))
        for renderable in () if self.as_json else renderables:
            self._out.print(renderable)
        self._stdout.flush()

    @contextmanager
    def waiting(self, what: str, patience: float = 1.0) -> Iterator[None]:
        """Say on a terminal what is being waited for, where it takes longer than `patience` seconds."""
        if self.quiet or not self._err.is_terminal:
            yield
            return
        said = threading.Event()

        def say() -> None:
            said.set()
            self._err.file.write(f"{what} …\r")
            self._err.file.flush()

        timer = threading.Timer(patience, say)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if said.is_set():
                self._err.file.write("\x1b[2K\r")
                self._err.file.flush()

    def watch(self, work: str) -> None:
        """Show on a terminal that `work` goes on, wherever nothing else tells of it for two seconds."""
        if isinstance(self.progress, BarProgress):
            self.progress.watch(work)

    def close(self) -> None:
        """Take down whatever progress is still drawn."""
        if isinstance(self.progress, BarProgress):
            self.progress.close()

    @contextmanager
    def capture_messages(self) -> Iterator[None]:
        """Show what the library logs, and keep warnings of other packages out of the way unless asked for."""
        logger = logging.getLogger("vitcompact")
        handler = _Handler(self)
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if self.verbose else logging.WARNING)
        logging.getLogger("vitcompact.facts").setLevel(logging.INFO)  # how a file was read: notes
        try:
            # Whatever timm and others print is a message: stdout is for results.
            with warnings.catch_warnings(), redirect_stdout(sys.stderr):
                if not self.verbose:
                    warnings.simplefilter("ignore")
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
            self.close()

    def _line(self, text: Text) -> None:
        # soft_wrap: a path is never cut by a line break of ours.
        self._err.print(text, soft_wrap=True)


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._console.warning(spoken(record.getMessage()))
        else:
            self._console.note(spoken(record.getMessage()))


class _Stream(RichConsole):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, but what names in files hold never reaches the terminal as its commands."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Leave it to the error boundary; rich would end the process."""
        raise BrokenPipeError


def _rich(stderr: bool) -> RichConsole:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPED_WIDTH
    return _Stream(stderr=stderr, file=None if stderr else stream, highlight=False, width=width)
