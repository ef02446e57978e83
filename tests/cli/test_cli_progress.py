"""Progress elsewhere than on a terminal: rare lines with the time left; on one, bars that go away."""

from __future__ import annotations

import io

from rich.console import Console

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


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 61, 3700)] == ["0 s", "59 s", "1 min 1 s", "1 h 1 min"]
