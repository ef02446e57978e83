"""Training images: `TrainingStream`, its in-memory form, and BatchNorm statistics measured over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from copy import copy
from itertools import count, islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vitcompact.data import from_tensor, images_for
from vitcompact.data.sampling import part_of, shuffled
from vitcompact.errors import UsageError
from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.models.forward import autocast, eval_mode


@runtime_checkable
class TrainingStream(Protocol):
    """An endless stream of batches that can begin at any step; `data.TrainingBatches` is one."""

    @property
    def batch_size(self) -> int:
        """Images a batch; every batch is full."""

    @property
    def num_samples(self) -> int:
        """Images of an epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 (batch, channels, height, width) and int64 labels (batch,), -1 for none."""


class TensorBatches:
    """Images in memory as a `TrainingStream`: shuffled anew each epoch, seeded by (seed, epoch), not augmented.

    Args:
        images: normalised (n, channels, height, width).
        labels: int64 (n,), -1 for none; None for no labels at all.
        batch_size: images a batch; all of them where there are fewer. An incomplete last batch is dropped.
        seed: decides the order.

    Raises:
        UsageError: wrong shapes.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, *, batch_size: int = 64, seed: int = 0) -> None:
        channels = images.shape[1] if images.ndim == 4 else 3
        self._images = torch.cat(list(from_tensor(images, batch_size, channels=channels)))
        self._labels = torch.full((len(images),), -1) if labels is None else labels.to(torch.int64)
        if self._labels.shape != (len(images),):
            raise UsageError(f"labels must have the shape ({len(images)},), got {tuple(self._labels.shape)}")
        self.num_samples = len(images)
        self.batch_size = min(batch_size, self.num_samples)
        self.steps_per_epoch = self.num_samples // self.batch_size
        self._seed = seed
        self._part = (0, 1)

    def shared(self, rank: int, world: int) -> TensorBatches:
        """The same with the rows of each batch that are those of process `rank` of `world`."""
        share = copy(self)
        share._part = (rank, world)
        return share

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        first_epoch, position = divmod(start_step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            order = torch.tensor(shuffled(self.num_samples, "order", self._seed, epoch))
            for whole in order.split(self.batch_size)[position : self.steps_per_epoch]:
                chunk = whole[part_of(len(whole), *self._part)]
                yield self._images[chunk], self._labels[chunk]
            position = 0


def first_batch(stream: TrainingStream) -> tuple[Tensor, Tensor]:
    """What the first step of a run sees."""
    with closing(stream.batches(0)) as batches:  # type: ignore[type-var]
        return next(batches)


def as_stream(batches: TrainingStream | Tensor | Iterable[Any], model: nn.Module, seed: int) -> TrainingStream:
    """What `finetune` was given, as a stream; an iterable is read once and kept in memory, its labels are not.

    Raises:
        UsageError: not images, or not of a size that the model takes.
    """
    if isinstance(batches, TrainingStream):
        return batches
    if isinstance(batches, Tensor):
        return TensorBatches(torch.cat(list(images_for(model, batches, name="batches"))), seed=seed)
    kept = list(images_for(model, batches, name="batches"))
    return TensorBatches(torch.cat(kept), batch_size=max(len(batch) for batch in kept), seed=seed)


def remeasure(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_batches: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
) -> None:
    """Replace running mean and variance of every `TokenBatchNorm` by plain averages over `num_batches` batches.

    While training they lag behind the weights, and a moving average of the weights has statistics of its own; only
    the evaluation form is folded, so it has to be the function that was trained.
    """
    norms = [module for module in model.modules() if isinstance(module, TokenBatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.train()
        for i, (images, _) in enumerate(islice(batches, num_batches)):
            for norm in norms:
                norm.momentum = 1 / (i + 1)
            with autocast(device, amp_dtype):
                model(images.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
