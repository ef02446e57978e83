from __future__ import annotations

import gc
from itertools import product

import pytest

from vitcompact.benchmarking.timing import PairedTimes, interleave, quantile, speedup, speedup_interval
from vitcompact.errors import UsageError


class Laboratory:
    """A clock that only the runs move, and a log of who ran."""

    def __init__(self, model: float = 1.0, baseline: float = 3.0) -> None:
        self.now = 100.0
        self.log: list[str] = []
        self.cost = {"model": model, "baseline": baseline}

    def clock(self) -> float:
        return self.now

    def run_model(self) -> None:
        self._run("model")

    def run_baseline(self) -> None:
        self._run("baseline")

    def _run(self, name: str) -> None:
        self.log.append(name)
        self.now += self.cost[name]

    def measure(self, num_pairs: int, warmup: int = 0, max_seconds: float | None = None) -> PairedTimes:
        return interleave(
            self.run_model,
            self.run_baseline,
            num_pairs=num_pairs,
            warmup=warmup,
            clock=self.clock,
            max_seconds=max_seconds,
        )


def test_who_goes_first_alternates() -> None:
    lab = Laboratory()
    times = lab.measure(4)
    assert lab.log == ["model", "baseline", "baseline", "model"] * 2
    assert times == PairedTimes([1.0] * 4, [3.0] * 4)


def test_warm_up_is_not_timed() -> None:
    lab = Laboratory()
    times = lab.measure(2, warmup=3)
    assert lab.log[:6] == ["model", "baseline"] * 3
    assert len(times.model) == len(times.baseline) == 2


def test_time_limit_still_measures_five_pairs() -> None:
    assert len(Laboratory().measure(30, max_seconds=1.0).model) == 5
    assert len(Laboratory().measure(30, max_seconds=39.0).model) == 10
    assert len(Laboratory().measure(30, max_seconds=1e9).model) == 30


def test_garbage_collection_waits_and_comes_back() -> None:
    seen = []
    lab = Laboratory()
    interleave(lambda: seen.append(gc.isenabled()), lab.run_baseline, num_pairs=1, warmup=0, clock=lab.clock)
    assert seen == [False]
    assert gc.isenabled()

    def failing() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interleave(failing, lab.run_baseline, num_pairs=1, warmup=0, clock=lab.clock)
    assert gc.isenabled()


def test_each_pair_is_reported() -> None:
    lab, pairs = Laboratory(), []
    interleave(
        lab.run_model,
        lab.run_baseline,
        num_pairs=3,
        warmup=2,
        clock=lab.clock,
        on_pair=lambda: pairs.append(len(lab.log)),
    )
    assert pairs == [6, 8, 10]


def test_speedup_is_the_median_of_the_ratios_not_the_ratio_of_medians() -> None:
    times = PairedTimes(model=[1.0, 2.0, 10.0], baseline=[3.0, 2.0, 15.0])
    assert speedup(times) == 1.5
    assert quantile(times.baseline, 0.5) / quantile(times.model, 0.5) == 1.5  # 3 / 2
    assert speedup(PairedTimes([1.0, 2.0, 4.0], [4.0, 4.0, 4.0])) == 2.0
    assert speedup(PairedTimes([0.0], [0.0])) == 0.0


def test_interval_is_the_bootstrap_over_pairs() -> None:
    times = PairedTimes(model=[1.0] * 40, baseline=[1.2 + 0.01 * (i % 7) for i in range(40)])
    low, high = speedup_interval(times, seed=0)
    assert 1.2 <= low <= speedup(times) <= high <= 1.27
    assert speedup_interval(times, seed=0) == (low, high)
    assert speedup_interval(PairedTimes([1.0] * 5, [2.0] * 5), seed=3) == (2.0, 2.0)


def test_interval_of_two_pairs_covers_what_resampling_can_give() -> None:
    possible = {(a + b) / 2 for a, b in product([1.0, 3.0], repeat=2)}
    low, high = speedup_interval(PairedTimes([1.0, 1.0], [1.0, 3.0]), seed=0)
    assert {low, high} == {min(possible), max(possible)}


@pytest.mark.parametrize(("num_pairs", "warmup"), [(0, 0), (1, -1)])
def test_wrong_numbers_are_refused(num_pairs: int, warmup: int) -> None:
    with pytest.raises(UsageError):
        Laboratory().measure(num_pairs, warmup)


def test_quantiles_interpolate() -> None:
    assert quantile([0.0, 1.0, 2.0, 3.0, 4.0], 0.95) == pytest.approx(3.8)
