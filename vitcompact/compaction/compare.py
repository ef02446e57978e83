"""Several models beside each other: scores on the same images, times in one process, cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from vitcompact.benchmarking import beside_first
from vitcompact.benchmarking.timing import quantile, speedup, speedup_interval
from vitcompact.data import check_model, resolve_input
from vitcompact.errors import UsageError
from vitcompact.evaluation import evaluate
from vitcompact.models.cost import count
from vitcompact.utils.intervals import Interval
from vitcompact.utils.progress import Progress, notebooks


@dataclass(frozen=True)
class Compared:
    """One of several models; what is relative is relative to the first.

    Attributes:
        name: as it was given.
        macs, params: counted, of the folded form.
        latency_ms: median milliseconds of a batch, of rounds in which all models ran.
        speedup: median over the rounds of the first one's time over this one's, with its 95 % interval.
        top1: percent right; None without labels.
        change: points of top-1 more than the first, and its 95 % interval.
        agreement, cosine: with the first; None without images.
    """

    name: str
    macs: int
    params: int
    latency_ms: float
    speedup: float
    speedup_interval: Interval
    top1: float | None = None
    change: float | None = None
    change_interval: Interval | None = None
    agreement: float | None = None
    cosine: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def compare(
    models: Mapping[str, nn.Module],
    evaluation: Iterable[Any] | None = None,
    *,
    batch_size: int = 8,
    num_pairs: int = 20,
    max_seconds: float = 20.0,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Progress = notebooks,
) -> tuple[Compared, ...]:
    """Put models beside each other; the first is what the others are compared with.

        vitcompact.compare({"original": model, "1.5x": fast, "2x": faster}, evaluation=labelled)

    Args:
        models: timm modules by name, two or more, of one task.
        evaluation: batches `(images, labels)` or of images, read once for each model; None scores nothing.
        batch_size: images a batch, for times.
        num_pairs, max_seconds: timed rounds in which each model runs once, and their limit in seconds for each model.

    Raises:
        UsageError: fewer than two models, or what cannot be compared.
    """
    if len(models) < 2:
        raise UsageError(f"compare puts models beside each other: give two or more, got {len(models)}")
    for name, model in models.items():
        check_model(model, name)
    first = next(iter(models.values()))
    found = []
    times = beside_first(
        list(models.values()),
        batch_size=batch_size,
        num_rounds=num_pairs,
        max_seconds=max_seconds * len(models),
        device=device,
        seed=seed,
        progress=progress,
    )
    for (name, model), laps in zip(models.items(), times, strict=True):
        cost = count(model, resolve_input(model).input_size)
        scores: dict[str, Any] = {}
        if evaluation is not None:
            score = evaluate(model, evaluation, reference=first, device=device, progress=progress)
            scores = {"top1": score.top1, "agreement": score.agreement, "cosine": score.cosine}
            scores |= {"change": score.top1_change, "change_interval": score.top1_change_interval}
        fast = speedup(laps), speedup_interval(laps, seed)
        found.append(Compared(name, cost.macs, cost.params, 1e3 * quantile(laps.model, 0.5), *fast, **scores))
    return tuple(found)
