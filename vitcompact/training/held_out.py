"""Scores on evaluation images while training: the teacher runs over them once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.errors import DataError
from vitcompact.evaluation.scores import Mean, cosines, top_k_hits
from vitcompact.models.forward import eval_mode, features, logits, num_classes
from vitcompact.utils.progress import Progress


@dataclass(frozen=True)
class Scores:
    """Percent right, and closeness to the teacher: `agreement` of logits, or `cosine` of pooled features."""

    top1: float | None = None
    agreement: float | None = None
    cosine: float | None = None

    @property
    def value(self) -> float:
        """What decides which weights are best: top-1, else agreement, else the cosine."""
        return next((v for v in (self.top1, self.agreement, self.cosine) if v is not None), 0.0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class HeldOut:
    """Evaluation images with the teacher's answers, kept as class indices (or pooled features) after the first pass.

    Args:
        batches: `(images, labels)`, the same on every pass, labels negative for none; never training images.
        teacher: the original, on `device`.
        device: where models run.
        check: called before each batch; it may raise to stop.
        progress: told of each batch.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        teacher: nn.Module,
        device: torch.device,
        check: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._batches, self._teacher, self._device = batches, teacher, device
        self._check, self._progress = check, progress
        self._answers: list[Tensor] = []
        self._complete = False

    @property
    def passes_left(self) -> int:
        """Passes over the images that a score after training takes, counting the teacher's."""
        return 1 if self._complete else 2

    def score(self, model: nn.Module, amp_dtype: torch.dtype | None, task: str) -> Scores:
        """Run `model` over all batches in evaluation mode.

        Raises:
            DataError: there are no images.
        """
        top1, agreement, cosine = Mean(), Mean(), Mean()
        self._answers = self._answers if self._complete else []
        seen = 0
        self._progress.start(task, getattr(self._batches, "num_batches", None))
        with eval_mode(model, self._teacher), torch.inference_mode():
            for index, (images, labels) in enumerate(self._batches):
                self._check()
                images, labels = images.to(self._device), labels.to(self._device)
                if not self._complete:
                    self._answers.append(self._answer(self._teacher, images, None))
                target = self._answers[index].to(self._device)
                if num_classes(model):
                    output = logits(model, images, amp_dtype)
                    top1.add(top_k_hits(output, labels, 1)[labels >= 0])
                    agreement.add(output.argmax(dim=1) == target)
                else:
                    cosine.add(cosines(self._answer(model, images, amp_dtype), target))
                seen += len(images)
                self._progress.advance(1, f"{seen} images")
        self._progress.finish()
        if not seen:
            raise DataError("no images to evaluate on")
        self._complete = True
        return Scores(top1.value(100), agreement.value(), cosine.value())

    def _answer(self, model: nn.Module, images: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
        if num_classes(model):
            return logits(model, images, amp_dtype).argmax(dim=1).cpu()
        return features(model, images, amp_dtype)[0].cpu()
