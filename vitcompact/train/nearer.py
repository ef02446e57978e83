"""Whether training has brought a model nearer to its original, by the loss that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor, nn

from vitcompact.evaluate.forward import eval_mode
from vitcompact.train.stream import TrainingStream

JUDGED_STEPS = 20
"""Steps from which on a run is meant to get somewhere: a few of them say nothing of the rate they were taken at."""

_ELSEWHERE = 10**6


def unseen_crops(stream: TrainingStream) -> tuple[Tensor, Tensor]:
    """A batch of an epoch that no run reaches: images of training and their labels, in crops that no step has seen."""
    with closing(stream.batches(_ELSEWHERE * stream.steps_per_epoch)) as batches:  # type: ignore[type-var]
        return next(batches)


def evaluated_loss(loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """`loss` of a batch, with the model it belongs to in evaluation mode."""
    with eval_mode(model), torch.no_grad():
        return float(loss(images, labels))
