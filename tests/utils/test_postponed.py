"""Signals wait while something is done whole, and act afterwards as they would have."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from vitcompact.utils.postponed import Postponed, uninterrupted, whole


@pytest.fixture(autouse=True)
def _python_hears_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _raise)
    yield
    signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_and_comes_once(number: signal.Signals) -> None:
    done = []

    @uninterrupted()
    def job() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("all")

    with pytest.raises(KeyboardInterrupt):
        job()
    assert done == ["all"]
    with uninterrupted():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_inside_one_another_it_comes_at_the_outermost_end() -> None:
    done = []

    @uninterrupted()
    def job() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        done.append("all")

    with pytest.raises(KeyboardInterrupt):
        job()
    assert done == ["all"]


@pytest.mark.parametrize("when", ["begin", "between", "end"])
def test_what_was_begun_ends(when: str) -> None:
    done: list[str] = []

    def step(name: str) -> None:
        if when == name:
            signal.raise_signal(signal.SIGINT)
        done.append(name)

    with pytest.raises(KeyboardInterrupt), whole(lambda: step("begin"), lambda: step("end")):
        step("between")
    assert done == (["begin", "between", "end"] if when == "end" else ["begin", "end"])


def test_what_fails_to_begin_is_ended_too() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"), whole(fail, lambda: done.append("end")):
        done.append("between")
    assert done == ["end"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # is heard again


def test_what_ends_the_process_outright_is_left_alone_and_so_are_other_threads() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals = Postponed()
    signals.hold()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signals.release()
    handlers = []
    thread = threading.Thread(target=lambda: handlers.append(signal.getsignal(signal.SIGINT)))
    with uninterrupted():
        held = signal.getsignal(signal.SIGINT)
        thread.start()
        thread.join()
    assert handlers == [held]
    other: list[BaseException] = []
    thread = threading.Thread(target=lambda: _enter(other))
    thread.start()
    thread.join()
    assert other == []


def _enter(raised: list[BaseException]) -> None:
    try:
        with uninterrupted():
            pass
    except BaseException as error:
        raised.append(error)
