"""Intervals hold what they are intervals of, as often as they say, and agree with published examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitcompact.utils.intervals import Interval, median_interval, paired_difference, wilson


def share(draws: Tensor) -> Interval:
    return wilson(int((draws < 0.9).sum()), len(draws))


def difference(draws: Tensor) -> Interval:
    """The second is right on 90 of 100, the first on 95, both together on 88."""
    return paired_difference(int(((draws > 0.95) & (draws < 0.97)).sum()), int((draws < 0.07).sum()), len(draws))


def median(draws: Tensor) -> Interval:
    return median_interval(draws.tolist())


@pytest.mark.parametrize("number", [40, 400])
@pytest.mark.parametrize(("interval", "truth"), [(share, 0.9), (difference, -0.05), (median, 0.5)])
def test_they_hold_the_truth_95_times_in_100(interval: Callable[[Tensor], Interval], truth: float, number: int) -> None:
    rng = torch.Generator().manual_seed(number)
    held = 0
    for _ in range(600):
        low, high = interval(torch.rand(number, generator=rng))
        held += low <= truth <= high
    assert 0.92 <= held / 600 <= 0.985


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (wilson(15, 148), (0.0624, 0.1605)),  # Newcombe 1998, table I, method 3
        (wilson(0, 20), (0.0, 0.1611)),
        (wilson(1, 29), (0.0061, 0.1718)),
    ],
)
def test_published_examples(found: Interval, expected: Interval) -> None:
    assert found == pytest.approx(expected, abs=1e-3)


def test_edges() -> None:
    assert wilson(16, 16)[1] == 1.0
    assert wilson(16, 16)[0] < 0.82  # 16 of 16 say little
    low, high = paired_difference(0, 0, 200)
    assert -0.02 < low < 0 < high < 0.02
    assert paired_difference(0, 3, 3)[0] == -1.0
    assert paired_difference(2, 9, 500) == tuple(-x for x in paired_difference(9, 2, 500)[::-1])


@pytest.mark.parametrize("number", [1, 2, 5, 6, 9, 15])
def test_the_interval_of_a_median_is_between_values(number: int) -> None:
    """Ranks as tables have them (Conover 1999, table A3); of too few values, all of them."""
    ranks = {6: (1, 6), 9: (2, 8), 15: (4, 12)}
    assert median_interval(list(range(number, 0, -1))) == ranks.get(number, (1, number))
