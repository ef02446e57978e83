"""Whether training has brought a model nearer to its original, by the loss that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor, nn

from vitcompact.models.forward import eval_mode
from vitcompact.training.stream import TrainingStream

JUDGED_STEPS = 20
"""Steps from which on a run is meant to get somewhere: a few of them say nothing of the rate they were taken at."""

FEWEST_IMAGES, ENOUGH_IMAGES = 8, 64
"""Images to compare two models on, in whole batches of the run's own size: what a few minutes gain varies between
batches of 16 by several times itself (docs/results.md)."""

_SHARE = 20
_ELSEWHERE = 10**6


def batches_judged(batch_size: int, steps: int) -> int:
    """How many batches tell after `steps`: `ENOUGH_IMAGES` within a twentieth of them, at least `FEWEST_IMAGES`."""
    fewest, enough = math.ceil(FEWEST_IMAGES / batch_size), math.ceil(ENOUGH_IMAGES / batch_size)
    return min(max(steps // _SHARE, fewest), enough)


def unseen_crops(stream: TrainingStream, steps: int = 0) -> list[tuple[Tensor, Tensor]]:
    """`batches_judged` of an epoch that no run reaches: training images and labels, in crops that no step has seen."""
    with closing(stream.batches(_ELSEWHERE * stream.steps_per_epoch)) as batches:  # type: ignore[type-var]
        return list(islice(batches, batches_judged(stream.batch_size, steps)))


def evaluated_loss(
    loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """Mean `loss` of batches of images and labels, with the model it belongs to in evaluation mode."""
    with eval_mode(model), torch.no_grad():
        return sum(float(loss(images, labels)) for images, labels in batches) / len(batches)
