"""Seconds of several runs, taken in turns: what else the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from vitcompact.utils.intervals import median_interval


@dataclass(frozen=True)
class Reading:
    """How long something takes relative to what it was run beside; readings of the same thing add up.

    Attributes:
        shares: its time over the other's, one for each round in which both ran.
    """

    shares: tuple[float, ...]

    @cached_property
    def share(self) -> float:
        """The median."""
        return statistics.median(self.shares)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the median; of few rounds, their range."""
        return median_interval(self.shares)

    @property
    def blur(self) -> float:
        """Half the width of the interval, relative to the median."""
        low, high = self.interval
        return (high - low) / 2 / max(self.share, 1e-12)

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.shares + other.shares)

    @classmethod
    def of(cls, own: Sequence[float], whole: Sequence[float]) -> Reading:
        """Of the times that both took, round by round."""
        return cls(tuple(each / max(other, 1e-12) for each, other in zip(own, whole, strict=True)))

    def beside(self, other: Reading) -> Reading:
        """Relative to what `other` was read of, in the same rounds."""
        return self.of(self.shares, other.shares)


def settled(take: Callable[[], list[Reading]], blur: float, most: int) -> list[Reading]:
    """Readings of several things in the same rounds, taken again until all of them are as sharp as `blur`.

    Args:
        most: how often they are taken at most.
    """
    found = take()
    for _ in range(most - 1):
        if all(each.blur <= blur for each in found):
            break
        found = [before + more for before, more in zip(found, take(), strict=True)]
    return found


def rounds(runs: Sequence[Callable[[], float]]) -> Iterator[list[float]]:
    """What each of `runs` gives (its seconds), round by round without end; every other round goes backwards."""
    order = list(range(len(runs)))
    while True:
        seconds = {i: runs[i]() for i in order}
        yield [seconds[i] for i in range(len(runs))]
        order.reverse()


def relative_times(runs: Sequence[Callable[[], float]], num_rounds: int, warmup: int = 1) -> tuple[float, list[float]]:
    """Median seconds of the first run, and of each other one the median share of the first's in the same round.

    Args:
        warmup: rounds before that do not count.
    """
    measured = list(islice(rounds(runs), warmup, warmup + num_rounds))
    shares = [statistics.median(laps[i] / max(laps[0], 1e-12) for laps in measured) for i in range(1, len(runs))]
    return statistics.median(laps[0] for laps in measured), shares
