"""Timing of several callables in turns in one process, and the statistics of pairs of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
    """Run both sides in turns: `take_turns` of two."""
    runs = [run_model, run_baseline]
    return PairedTimes(*take_turns(runs, num_pairs, warmup, clock=clock, max_seconds=max_seconds, on_round=on_pair))


def take_turns(
    runs: Sequence[Callable[[], object]],
    num_rounds: int,
    warmup: int,
    *,
    clock: Callable[[], float],
    max_seconds: float | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Seconds of each of `runs`, round by round: `warmup` untimed rounds, then `num_rounds` timed ones.

    Which one goes first alternates from round to round, so that heat, clock changes and other work on the machine hit
    all alike. Garbage collection waits until the end.

    Args:
        runs: complete runs, waiting for the device included.
        num_rounds: timed rounds.
        warmup: untimed rounds before.
        clock: seconds, monotonic.
        max_seconds: no further round begins once this time has passed since the first timed one, but at least
            `MIN_PAIRS` are measured; None sets no limit.
        on_round: called after each timed round.
    """
    if num_rounds < 1 or warmup < 0:
        raise UsageError(f"at least 1 pair and no negative warm-up are needed, got {num_rounds} and {warmup}")

    def lap(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(warmup):
        for run in runs:
            run()
    with _no_garbage_collection():
        begun = clock()
        for laps in islice(rounds([partial(lap, run) for run in runs]), num_rounds):
            for own, each in zip(seconds, laps, strict=True):
                own.append(each)
            on_round()
            if max_seconds is not None and len(seconds[0]) >= MIN_PAIRS and clock() - begun > max_seconds:
                break
    return seconds


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
