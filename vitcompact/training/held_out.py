"""Scores on evaluation images while training, and whether training has brought a model nearer to its original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.errors import DataError, Interrupted
from vitcompact.models.forward import eval_mode, features, logits, num_classes
from vitcompact.models.scores import Mean, cosines, first_guess, top_k_hits
from vitcompact.training.share import INTERRUPTED, Sharing
from vitcompact.training.stream import TrainingStream
from vitcompact.utils.progress import Progress

JUDGED_STEPS = 20
"""Steps from which on a run is meant to get somewhere: a few of them say nothing of the rate they were taken at."""
FEWEST_IMAGES, ENOUGH_IMAGES = 8, 64
"""Images to compare two models on, in whole batches of the run's own size: what a few minutes gain varies between
batches of 16 by several times itself (docs/results.md)."""
_SHARE = 20
_ELSEWHERE = 10**6


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
        check: called before each batch; it may raise `Interrupted` to stop, in one process or in several.
        progress: told of each batch.
        sharing: how the images are shared, of which `batches` are this process's.
        spare: a batch for a process that has none while others do; needed for sharded models only.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        teacher: nn.Module,
        device: torch.device,
        check: Callable[[], None],
        progress: Progress,
        sharing: Sharing = Sharing(),
        spare: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._sharing, self._processes = sharing, sharing.processes
        self._spare = spare or (torch.empty(0), torch.empty(0))
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
            Interrupted: `check` did so, in any of the processes.
        """
        top1, agreement, cosine = means = Mean(), Mean(), Mean()
        self._answers = self._answers if self._complete else []
        stopped: Interrupted | None = None
        try:
            seen = self._run(model, amp_dtype, task, *means)
        except Interrupted as error:
            seen, stopped = 0, error
        if self._processes.sums(stopped is not None)[0]:
            raise stopped or Interrupted(INTERRUPTED)
        for mean in means:
            mean.total_over(self._processes)
        if not self._processes.sums(seen)[0]:
            raise DataError("no images to evaluate on")
        self._complete = True
        return Scores(top1.value(100), agreement.value(), cosine.value())

    def _run(
        self, model: nn.Module, amp_dtype: torch.dtype | None, task: str, top1: Mean, agreement: Mean, cosine: Mean
    ) -> int:
        """The images of this process, of which it is said how many there are."""
        seen = 0
        self._progress.start(task, getattr(self._batches, "num_batches", None))
        has_head, batches = num_classes(model) > 0, self._sharing.in_step(self._batches, self._spare, self._check)
        with eval_mode(model, self._teacher), torch.no_grad():
            for index, (images, labels, counts) in enumerate(batches):
                images, labels = images.to(self._device), labels.to(self._device)
                if not self._complete:
                    self._answers.append(self._answer(self._teacher, images, None))
                target = self._answers[index].to(self._device)
                output = self._output(model, images, amp_dtype)
                if not counts:
                    continue
                if has_head:
                    top1.add(top_k_hits(output, labels, 1)[labels >= 0])
                    agreement.add(first_guess(output) == target)
                else:
                    cosine.add(cosines(output, target))
                seen += len(images)
                self._progress.advance(1, f"{seen} images")
        self._progress.finish()
        return seen

    def _answer(self, model: nn.Module, images: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
        output = self._output(model, images, amp_dtype)
        return first_guess(output).cpu() if num_classes(model) else output.cpu()

    def _output(self, model: nn.Module, images: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
        """Logits, or pooled features of a model without a head."""
        if num_classes(model):
            return self._sharing.within(partial(logits, model, images, amp_dtype))
        return self._sharing.within(partial(features, model, images, amp_dtype))[0]


def batches_judged(batch_size: int, steps: int) -> int:
    """How many batches tell after `steps`: `ENOUGH_IMAGES` within a twentieth of them, at least `FEWEST_IMAGES`."""
    fewest, enough = math.ceil(FEWEST_IMAGES / batch_size), math.ceil(ENOUGH_IMAGES / batch_size)
    return min(max(steps // _SHARE, fewest), enough)


def unseen_crops(stream: TrainingStream, steps: int = 0) -> list[tuple[Tensor, Tensor]]:
    """`batches_judged` of an epoch that no run reaches: training images and labels, in crops that no step has seen."""
    with closing(stream.batches(_ELSEWHERE * stream.steps_per_epoch)) as batches:  # type: ignore[type-var]
        return list(islice(batches, batches_judged(stream.batch_size, steps)))


def evaluated_loss(
    loss: Callable[..., Tensor],
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    sharing: Sharing = Sharing(),
) -> float:
    """Mean `loss` of batches of images and labels, with the model it belongs to in evaluation mode."""
    with eval_mode(model), torch.no_grad():
        return sum(sharing.value(loss, images, labels) for images, labels in batches) / len(batches)
