from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

from vitcompact.utils.timing import relative_times, rounds


def logged(log: list[str], name: str, *seconds: float) -> Callable[[], float]:
    """A run that takes `seconds`, one after the other, over and over."""
    left = cycle(seconds)

    def run() -> float:
        log.append(name)
        return next(left)

    return run


def test_every_other_round_goes_backwards() -> None:
    log: list[str] = []
    runs = [logged(log, name, {"a": 1.0, "b": 2.0, "c": 3.0}[name]) for name in "abc"]
    assert list(islice(rounds(runs), 3)) == [[1.0, 2.0, 3.0]] * 3
    assert "".join(log) == "abccbaabc"


def test_shares_are_medians_of_rounds_after_the_warm_up() -> None:
    """A machine that slows down hits both runs; one bad round and the first rounds do not count."""
    runs = [logged([], "first", 100.0, 1.0, 2.0, 4.0), logged([], "second", 50.0, 0.5, 1.0, 36.0)]
    assert relative_times(runs, 3) == (2.0, [0.5])
    assert relative_times([lambda: 3.0], 1, warmup=0) == (3.0, [])
