"""Paired timing of two callables in one process, and the statistics of the pairs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch

from vitcompact.errors import UsageError
from vitcompact.utils.timing import rounds

MIN_PAIRS = 5
"""Pairs that are always measured, whatever the time limit."""


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of each run of both sides; entries of one index were measured back to back."""

    model: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)


def interleave(
    run_model: Callable[[], object],
    run_baseline: Callable[[], object],
    *,
    num_pairs: int,
    warmup: int,
    clock: Callable[[], float],
    max_seconds: float | None = None,
    on_pair: Callable[[], object] = lambda: None,
) -> PairedTimes:
    """Run both sides alternately: `warmup` untimed pairs, then `num_pairs` timed ones.

    Which side goes first alternates from pair to pair, so that heat, clock changes and other work on the machine
    hit both sides alike. Garbage collection waits until the end.

    Args:
        run_model: one complete run, waiting for the device included.
        run_baseline: the same for the other side.
        num_pairs: timed pairs.
        warmup: untimed pairs before.
        clock: seconds, monotonic.
        max_seconds: no further pair begins once this time has passed since the first timed one, but at least
            `MIN_PAIRS` are measured; None sets no limit.
        on_pair: called after each timed pair.
    """
    if num_pairs < 1 or warmup < 0:
        raise UsageError(f"at least 1 pair and no negative warm-up are needed, got {num_pairs} and {warmup}")

    def lap(run: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            start = clock()
            run()
            return clock() - start

        return timed

    times = PairedTimes()
    for _ in range(warmup):
        run_model()
        run_baseline()
    with _no_garbage_collection():
        begun = clock()
        for model, baseline in islice(rounds([lap(run_model), lap(run_baseline)]), num_pairs):
            times.model.append(model)
            times.baseline.append(baseline)
            on_pair()
            if max_seconds is not None and len(times.model) >= MIN_PAIRS and clock() - begun > max_seconds:
                break
    return times


def quantile(values: Sequence[float], q: float) -> float:
    """Linearly interpolated quantile, `q` in [0, 1]."""
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), q))


def speedup(times: PairedTimes) -> float:
    """Median over the pairs of baseline time over model time: above 1, the model is faster."""
    return quantile(_ratios(times), 0.5)


def speedup_interval(times: PairedTimes, seed: int, resamples: int = 2000) -> tuple[float, float]:
    """95 % interval of `speedup` by the percentile bootstrap over pairs (Efron 1979)."""
    ratios = torch.tensor(_ratios(times), dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(ratios), (resamples, len(ratios)), generator=rng)
    medians = ratios[drawn].quantile(0.5, dim=1)
    return float(medians.quantile(0.025)), float(medians.quantile(0.975))


def _ratios(times: PairedTimes) -> list[float]:
    tiny = 1e-12  # a clock too coarse for the work must not end in a division by zero
    return [b / max(m, tiny) for m, b in zip(times.model, times.baseline, strict=True)]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
