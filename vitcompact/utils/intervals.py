"""95 % intervals: how far what was measured on a sample can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = tuple[float, float]

Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % on either side."""


def wilson(successes: int, number: int) -> Interval:
    """Interval of a share of which `successes` in `number` were seen (Wilson 1927); also sound near 0 and 1."""
    share, z2 = successes / number, Z * Z
    middle = share + z2 / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + z2 / (4 * number**2))
    low, high = ((middle + sign * half) / (1 + z2 / number) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def paired_difference(gained: int, lost: int, number: int) -> Interval:
    """Interval of the difference of two shares of the same `number` images (Agresti and Min 2005).

    Args:
        gained: images that the second has and the first has not.
        lost: images that the first has and the second has not; what both or neither have cancels.
    """
    more, less, total = gained + 0.5, lost + 0.5, number + 2
    difference = (more - less) / total
    half = Z * math.sqrt(max(more + less - (more - less) ** 2 / total, 0.0)) / total
    return max(-1.0, difference - half), min(1.0, difference + half)


def median_interval(values: Sequence[float], coverage: float = 0.95) -> Interval:
    """An interval that holds the median of what `values` are drawn from with at least this probability, if possible.

    From order statistics, whatever the distribution (Conover 1999, Practical Nonparametric Statistics, section 3.2).
    """
    ordered, number = sorted(values), len(values)
    rank, tail = 0, 0.5**number  # the chance that at most `rank` values lie below the median
    while tail <= (1 - coverage) / 2:
        rank += 1
        tail += math.comb(number, rank) * 0.5**number
    index = max(rank - 1, 0)
    return ordered[index], ordered[number - 1 - index]
