"""Progress on stderr: bars with the time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from vitcompact.utils.numbers import duration

__all__ = ["BarProgress", "PlainProgress", "duration"]

SECONDS_BETWEEN_LINES = 30.0
SECONDS_WITHOUT_A_WORD = 2.0


class BarProgress:
    """Bars that vanish when the outermost task ends; a task begun inside another gets a bar below it.

    Once `watch` was called, a time in which nothing tells of its progress gets a bar of its own.
    """

    def __init__(self, console: RichConsole) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: list[TaskID] = []
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._work, self._patience = "", 0.0

    def watch(self, work: str, patience: float = SECONDS_WITHOUT_A_WORD) -> None:
        """Until `close`, show that `work` goes on wherever nothing was shown for `patience` seconds."""
        self._work, self._patience = work, patience
        self._await()

    def start(self, task: str, total: float | None) -> None:
        with self._lock:
            self._take_down_if_idle()
            if self._bars is None:
                self._bars = _bars(self._console)
                self._bars.start()
            self._tasks.append(self._bars.add_task(task, total=total, note=""))

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        if self._bars is not None and self._tasks:
            self._bars.advance(self._tasks[-1], amount)
            if note:
                self._bars.update(self._tasks[-1], note=note)

    def finish(self) -> None:
        if self._bars is not None and self._tasks:
            self._bars.remove_task(self._tasks.pop())
        if not self._tasks:
            self._take_down()
            self._await()

    def close(self) -> None:
        """Remove all bars, whatever is still running, and show no more of waiting."""
        self._patience = 0.0
        self._take_down()

    def _take_down(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._bars is not None:
                self._bars.stop()
            self._bars, self._tasks, self._timer = None, [], None

    def _take_down_if_idle(self) -> None:
        if not self._tasks:
            self._take_down()

    def _await(self) -> None:
        if self._patience:
            self._timer = threading.Timer(self._patience, self._show_waiting)
            self._timer.daemon = True
            self._timer.start()

    def _show_waiting(self) -> None:
        with self._lock:
            if self._bars is None and self._patience:
                self._bars = _bars(self._console)
                self._bars.start()
                self._bars.add_task(self._work, total=None, note="")


def _bars(console: RichConsole) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16, table_column=Column(min_width=10)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        # Whatever is left of the line; a note that does not fit is cut.
        TextColumn(
            "{task.fields[note]}", markup=False, style="dim", table_column=Column(ratio=1, no_wrap=True, min_width=1)
        ),
        console=console,
        transient=True,
        expand=True,
    )


@dataclass
class _Task:
    name: str
    total: float | None
    started: float
    done: float = field(default=0.0)


class PlainProgress:
    """At most a line every `SECONDS_BETWEEN_LINES`, so that a log file stays readable and a short run says nothing.

    Args:
        say: prints one line.
        clock: seconds; for tests.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._tasks: list[_Task] = []
        self._last = clock()

    def start(self, task: str, total: float | None) -> None:
        if not self._tasks:
            self._last = self._clock()
        self._tasks.append(_Task(task, total, self._clock()))

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        if not self._tasks:
            return
        task = self._tasks[-1]
        task.done += amount
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._say(_line(task, now, note))

    def finish(self) -> None:
        if self._tasks:
            self._tasks.pop()


def _line(task: _Task, now: float, note: str) -> str:
    text = f"{task.name}: {task.done:g}" + (f" of {task.total:g}" if task.total else "")
    if task.total and 0 < task.done <= task.total:
        text += f", about {duration((now - task.started) * (task.total / task.done - 1))} left"
    return text + (f" ({note})" if note else "")
