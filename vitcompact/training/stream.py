"""Where training images come from: `TrainingStream`, and its in-memory form for users of the library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vitcompact.data import from_tensor
from vitcompact.data.sampling import shuffled
from vitcompact.errors import UsageError


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

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        first_epoch, position = divmod(start_step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            order = torch.tensor(shuffled(self.num_samples, "order", self._seed, epoch))
            for chunk in order.split(self.batch_size)[position : self.steps_per_epoch]:
                yield self._images[chunk], self._labels[chunk]
            position = 0


def first_batch(stream: TrainingStream) -> tuple[Tensor, Tensor]:
    """What the first step of a run sees."""
    with closing(stream.batches(0)) as batches:  # type: ignore[type-var]
        return next(batches)


def as_stream(batches: TrainingStream | Tensor | Iterable[Any], model: nn.Module, seed: int) -> TrainingStream:
    """What `finetune` was given, as a stream; an iterable is read once and kept in memory, its labels are not.

    Raises:
        UsageError: not images.
    """
    if isinstance(batches, TrainingStream):
        return batches
    if isinstance(batches, Tensor):
        return TensorBatches(batches, seed=seed)
    kept = list(from_tensor(batches, channels=int(getattr(model, "in_chans", 3))))
    return TensorBatches(torch.cat(kept), batch_size=max(len(batch) for batch in kept), seed=seed)
