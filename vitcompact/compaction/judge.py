"""How much a compacted model has lost: on labelled evaluation images, or on calibration images that no fit saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.data import ImageBatches
from vitcompact.evaluation import evaluate
from vitcompact.models.forward import eval_mode, num_classes
from vitcompact.surgery.fidelity import fidelity
from vitcompact.utils.intervals import Interval
from vitcompact.utils.progress import Progress


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
    """Compares models with their original, always on the same images.

    Attributes:
        images: calibration images; those held out are used where there is no `evaluation`.
        evaluation: batches `(images, labels)` that may be read several times, or None.
        seconds: of the last comparison.
    """

    original: nn.Module
    images: ImageBatches
    evaluation: Iterable[Any] | None
    device: str | torch.device
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._reference = _Recalled(self.original) if num_classes(self.original) else self.original

    def __call__(self, model: nn.Module) -> Verdict:
        """What `model` has lost."""
        began = self.clock()
        try:
            return self._held_out(model) if self.evaluation is None else self._evaluated(model, self.evaluation)
        finally:
            self.seconds = self.clock() - began

    def _evaluated(self, model: nn.Module, batches: Iterable[Any]) -> Verdict:
        if isinstance(self._reference, _Recalled):
            self._reference.rewind()
        found = evaluate(model, batches, reference=self._reference, device=self.device, progress=self.progress)
        if found.top1_change is None or found.top1_change_interval is None:
            drop, interval = _lost(found.agreement, found.cosine, found.agreement_interval)
        else:
            low, high = found.top1_change_interval
            drop, interval = -found.top1_change, (-high, -low)
        scores = found.agreement, found.cosine, found.top1, found.reference_top1
        return Verdict(drop, interval, *scores, found.num_samples)

    def _held_out(self, model: nn.Module) -> Verdict:
        home = next(model.parameters()).device
        with eval_mode(model):
            found = fidelity(self.original, model.to(self.device), self.images)
        model.to(home)
        drop, interval = _lost(found.agreement, found.cosine, found.agreement_interval)
        return Verdict(drop, interval, found.agreement, found.cosine, num_samples=found.num_samples)


class _Recalled(nn.Module):
    """A classifier that runs once over batches that come in the same order every time, and remembers its answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes(model)
        self._answers: list[Tensor] = []
        self._next = 0

    def rewind(self) -> None:
        """The batches begin anew."""
        self._next = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        if self._next == len(self._answers):
            self._answers.append(self.model(images))
        self._next += 1
        return self._answers[self._next - 1]


def _lost(agreement: float | None, cosine: float | None, interval: Interval | None) -> tuple[float, Interval | None]:
    """Points of images answered otherwise, or without a head of the cosine."""
    if agreement is None:
        return 100 * (1 - (cosine or 0.0)), None
    return 100 * (1 - agreement), None if interval is None else (100 * (1 - interval[1]), 100 * (1 - interval[0]))
