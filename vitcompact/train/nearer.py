"""Whether training has brought a model nearer to its original, by the loss that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor, nn

from vitcompact.evaluate.forward import eval_mode
from vitcompact.train.stream import TrainingStream

JUDGED_STEPS = 20
"""Steps from which on a run is meant to get somewhere: a few of them say nothing of the rate they were taken at."""

JUDGED_IMAGES = 8
"""Images that the two are compared on, at least: whole batches of the run's own size."""

_ELSEWHERE = 10**6


def batches_judged(stream: TrainingStream) -> int:
    """How many batches make up `JUDGED_IMAGES`."""
    return math.ceil(JUDGED_IMAGES / stream.batch_size)


def unseen_crops(stream: TrainingStream) -> list[tuple[Tensor, Tensor]]:
    """Batches of an epoch that no run reaches: images of training and their labels, in crops that no step has seen."""
    with closing(stream.batches(_ELSEWHERE * stream.steps_per_epoch)) as batches:  # type: ignore[type-var]
        return list(islice(batches, batches_judged(stream)))


def evaluated_loss(
    loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """Mean `loss` of batches of images and labels, with the model it belongs to in evaluation mode."""
    with eval_mode(model), torch.no_grad():
        return sum(float(loss(images, labels)) for images, labels in batches) / len(batches)
