"""How much a compacted model has lost, on images that nothing was fitted to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitcompact.compaction.recalled import Recalled
from vitcompact.data.apart import chosen_of
from vitcompact.evaluation import Observer, evaluate
from vitcompact.evaluation.evaluate import as_pairs
from vitcompact.models.forward import num_classes
from vitcompact.utils.intervals import Interval
from vitcompact.utils.progress import Progress

BATCH = 64


@dataclass(frozen=True)
class Verdict:
    """What was lost, in points, and the scores that say so."""

    drop: float
    drop_interval: Interval | None
    agreement: float | None
    cosine: float | None
    top1: float | None = None
    original_top1: float | None = None
    num_samples: int = 0


@dataclass
class Judge:
    """Compares models with their original: on one half of the images to choose, on the other to report.

    What was chosen because it did well on some images did so by luck too; on images that had no part in it, it did not.

    Attributes:
        images: batches, with labels or without, that nothing was fitted or trained on and that may be read several
            times.
        seconds: of the last comparison.
    """

    original: nn.Module
    images: Iterable[Any]
    device: str | torch.device
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._halves = tuple(_Half(as_pairs(self.images, None, BATCH), rest) for rest in (0, 1))
        head = num_classes(self.original)
        self._reference = Recalled(self.original) if head else self.original

    def __call__(self, model: nn.Module) -> Verdict:
        """What `model` has lost, on the images that choose."""
        return self._on(0, model)

    def report(self, model: nn.Module, observer: Observer | None = None) -> Verdict:
        """What `model` has lost, on the images that did not choose it; `observer` sees the answers of both."""
        return self._on(1 if self._halves[0].seen != 1 else 0, model, observer)  # a single image does both

    def _on(self, half: int, model: nn.Module, observer: Observer | None = None) -> Verdict:
        began = self.clock()
        batches, reference = self._halves[half], self._reference
        found = evaluate(
            model, batches, reference=reference, device=self.device, progress=self.progress, observer=observer
        )
        if found.top1_change is None or found.top1_change_interval is None:
            drop, interval = _lost(found.agreement, found.cosine, found.agreement_interval)
        else:
            low, high = found.top1_change_interval
            drop, interval = -found.top1_change, (-high, -low)
        self.seconds = self.clock() - began
        scores = found.agreement, found.cosine, found.top1, found.reference_top1
        return Verdict(drop, interval, *scores, found.num_samples)


class _Half:
    """Every second image; `seen` counts all images of the last pass."""

    def __init__(self, batches: Iterable[Any], rest: int) -> None:
        self._batches, self._rest, self.seen = batches, rest, 0

    def __iter__(self) -> Iterator[Any]:
        self.seen = 0
        yield from chosen_of(self._batches, self._wanted)

    def _wanted(self, place: int) -> bool:
        self.seen = place + 1
        return place % 2 == self._rest


def _lost(agreement: float | None, cosine: float | None, interval: Interval | None) -> tuple[float, Interval | None]:
    """Points of images answered otherwise, or without a head of the cosine."""
    if agreement is None:
        return 100 * (1 - (cosine or 0.0)), None
    return 100 * (1 - agreement), None if interval is None else (100 * (1 - interval[1]), 100 * (1 - interval[0]))
