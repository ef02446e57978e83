"""Progress elsewhere than on a terminal: rare lines with the time left; on one, bars that go away."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from vitcompact.cli.console import Console as OurConsole
from vitcompact.cli.progress import BarProgress, PlainProgress, duration


def test_a_line_now_and_then_with_the_time_left() -> None:
    now = [0.0]
    lines: list[str] = []
    progress = PlainProgress(lines.append, clock=lambda: now[0])
    progress.start("convert", 12)
    for second in (10, 20, 31, 40):
        now[0] = second
        progress.advance(1, f"block {second}")
    progress.finish()
    assert lines == ["convert: 3 of 12, about 1 min 33 s left (block 31)"]


def test_unknown_total_and_inner_tasks() -> None:
    now = [0.0]
    lines: list[str] = []
    progress = PlainProgress(lines.append, clock=lambda: now[0])
    progress.start("outer", None)
    progress.start("inner", 2)
    now[0] = 60
    progress.advance()
    progress.finish()
    now[0] = 120
    progress.advance()
    progress.finish()
    progress.advance()  # nothing runs: nothing happens
    progress.finish()
    assert lines == ["inner: 1 of 2, about 1 min 0 s left", "outer: 1"]


def test_bars_come_down_whatever_happens() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=100))
    progress.start("evaluate [x]", 4)
    progress.start("inner", None)
    progress.advance(1, "note [y]")
    progress.close()
    progress.advance()
    progress.finish()
    assert "evaluate [x]" in stream.getvalue()
    assert "note [y]" in stream.getvalue()


def test_a_wait_that_nothing_tells_of_is_shown() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=100))
    shown = threading.Event()
    bars = progress._show_waiting
    progress._show_waiting = lambda: (bars(), shown.set())  # type: ignore[method-assign, assignment, func-returns-value]
    progress.watch("fold", patience=0.001)
    assert shown.wait(30)
    assert "fold" in stream.getvalue()
    progress.start("evaluate", 2)  # takes its place
    progress.advance()
    shown.clear()
    progress.finish()
    assert shown.wait(30)  # and what follows is waited for again
    progress.close()
    assert progress._bars is None
    assert progress._timer is None
    progress.start("last", 1)
    progress.finish()
    assert progress._timer is None


@pytest.mark.parametrize("slow", [True, False])
def test_loading_is_told_on_a_terminal_where_it_takes_long(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = OurConsole()
    monkeypatch.setattr(console, "_err", Console(file=stream, force_terminal=True))
    with console.waiting("loading torch", patience=0.001 if slow else 60.0):
        for _ in range(3000 if slow else 0):
            if stream.getvalue():
                break
            threading.Event().wait(0.01)
    assert ("loading torch …" in stream.getvalue()) == slow
    assert stream.getvalue().endswith("\x1b[2K\r" if slow else "")
    with OurConsole(quiet=True).waiting("loading torch", patience=0.0):
        pass


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 61, 3700)] == ["0 s", "59 s", "1 min 1 s", "1 h 1 min"]
