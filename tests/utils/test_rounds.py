from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice

from vitcompact.utils.timing import relative_times, rounds


def logged(log: list[str], name: str, seconds: Callable[[int], float]) -> Callable[[], float]:
    runs = count()

    def run() -> float:
        log.append(name)
        return seconds(next(runs))

    return run


def test_every_other_round_goes_backwards() -> None:
    log: list[str] = []
    runs = [logged(log, name, lambda _, value=value: value) for name, value in zip("abc", (1.0, 2.0, 3.0), strict=True)]
    assert list(islice(rounds(runs), 3)) == [[1.0, 2.0, 3.0]] * 3
    assert "".join(log) == "abccbaabc"


def test_shares_are_medians_of_rounds_after_the_warm_up() -> None:
    """A machine that slows down hits both runs; one bad round and the first rounds do not count."""
    seconds = [100.0, 1.0, 2.0, 4.0]
    runs = [
        logged([], "first", lambda run: seconds[run]),
        logged([], "second", lambda run: seconds[run] * (0.5 if run != 3 else 9)),
    ]
    assert relative_times(runs, 3) == (2.0, [0.5])
    assert relative_times([lambda: 3.0], 1, warmup=0) == (3.0, [])
