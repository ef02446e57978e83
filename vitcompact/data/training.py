"""Training images as a stream of batches that depends on the seed and the step only, so that it can be resumed.

timm's loader draws augmentation from generators seeded per worker and cannot start in the middle of an epoch; here
the order is seeded by (seed, epoch) and every image's augmentation by (seed, epoch, index).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from copy import copy
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitcompact.data.augment import Augment, augmented, policy
from vitcompact.data.classes import matched_quietly
from vitcompact.data.config import InputConfig, eval_transform, normalize, resolve_input
from vitcompact.data.decode import Skipped, UnreadableImageError
from vitcompact.data.image_set import ImageSet, StreamedImage, StreamSet
from vitcompact.data.open import open_dataset
from vitcompact.data.pipeline import Sample, SkipList, apply_transform, say_left_out, stack
from vitcompact.data.planes import Planes
from vitcompact.data.prefetch import BoundedCache, chunked, ordered_map
from vitcompact.data.sampling import generator, part_of, random_subset, shuffled
from vitcompact.errors import DataError
from vitcompact.options.data import DataOptions

MAX_REDRAWS = 20


class TrainingBatches(ABC):
    """An endless, resumable stream of augmented batches; made by `training_loader`.

    Every batch is full: the last, incomplete one of an epoch is dropped.

    Attributes:
        config: what the model wants to see.
        description: the data set.
        num_samples: number of images that an epoch draws from, readable or not.
        batch_size: images a batch; the whole data set where that is smaller than the batch asked for.
    """

    def __init__(
        self, description: str, num_samples: int, config: InputConfig, options: DataOptions, augment: Augment | None
    ) -> None:
        self.config = config
        self.description = description
        self.num_samples = num_samples
        self.batch_size = min(options.batch_size, num_samples)
        self._augment = None if augment is None or augment.no_aug else augment
        self._policy = None if augment is None or augment.aa is None else policy(augment.aa, config)
        self._transform = eval_transform(config)
        self._seed = options.seed
        self._workers = options.workers
        self._skips = SkipList()
        self._part = (0, 1)

    def shared(self, rank: int, world: int) -> TrainingBatches:
        """The same batches, of which only the images of process `rank` of `world` are read: every one is one's."""
        share = copy(self)
        share._part = (rank, world)
        return share

    @property
    def varies(self) -> bool:
        """Whether an image is another one in each epoch."""
        return self._augment is not None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of one epoch."""
        return self.num_samples // self.batch_size

    @property
    def skipped(self) -> list[Skipped]:
        """Images found unreadable so far, with the reason."""
        return self._skips.items()

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from step `start_step` (counted from 0 over all epochs) on, without end.

        Of a share, its part of each.

        Yields:
            float32 (batch_size, channels, height, width), normalised, and int64 labels (batch_size,), -1 for none.

        Raises:
            DataError: hardly any image can be read.
        """
        for samples in ordered_map(self._batch, self._steps(start_step), self._workers):
            images, labels = stack(samples)
            yield normalize(images, self.config), labels

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, from its `start`-th on."""
        first = epoch * self.steps_per_epoch + start
        yield from islice(self.batches(first), self.steps_per_epoch - start)

    def _steps(self, start_step: int) -> Iterator[tuple[int, list[Any]]]:
        """Epoch number and the images of each step."""
        first_epoch, position = divmod(start_step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            for chunk in chunked(self._epoch_items(epoch, position * self.batch_size), self.batch_size):
                yield epoch, chunk[part_of(len(chunk), *self._part)]
            position = 0

    def _batch(self, step: tuple[int, list[Any]]) -> list[Sample]:
        epoch, items = step
        return [self._sample(epoch, item) for item in items]

    def _augmented(self, image: Tensor, rng: random.Random) -> Tensor:
        if self._augment is None:
            return image
        crop = augmented(image, self.config.input_size[1:], self.config.interpolation, self._augment, rng)
        return crop if self._policy is None else self._policy(crop, rng)

    def _prepared(self, image: Image.Image | Planes) -> Tensor:
        """What augmentation starts from: all pixels; without augmentation, those of the evaluation transform."""
        if self._augment is None:
            return apply_transform(self._transform, image)
        if isinstance(image, Planes):
            return torch.from_numpy(np.stack([np.array(plane) for plane in image.images]))
        rows = np.array(image).reshape(image.height, image.width, -1)
        return torch.from_numpy(rows).permute(2, 0, 1)  # channels last in memory: the fast resampling

    @abstractmethod
    def _epoch_items(self, epoch: int, start: int) -> Iterator[Any]:
        """The `steps_per_epoch * batch_size` images of one epoch, from the `start`-th on."""

    @abstractmethod
    def _sample(self, epoch: int, item: Any) -> Sample:
        """One augmented image with its label."""


class FileTrainingBatches(TrainingBatches):
    """Training batches of a map-style data set.

    The place of an unreadable image is taken by another one drawn at random, and it is named in `skipped`. Decoded
    images stay in memory up to `options.cache_mb` MiB. Images more than twice the model's size are reduced while
    decoding.
    """

    def __init__(
        self,
        dataset: ImageSet,
        config: InputConfig,
        options: DataOptions,
        augment: Augment | None,
        without: Collection[int] = (),
    ) -> None:
        self._dataset = dataset
        say_left_out(dataset)
        self._indices = [i for i in random_subset(len(dataset), options.num_samples, options.seed) if i not in without]
        if not self._indices:
            raise DataError(f"no image of {dataset.description} is left to train on")
        self._cache: BoundedCache[Sample] = BoundedCache(options.cache_mb)
        super().__init__(dataset.description, len(self._indices), config, options, augment)

    def _epoch_items(self, epoch: int, start: int) -> Iterator[int]:
        order = shuffled(len(self._indices), "order", self._seed, epoch)
        return (self._indices[i] for i in order[start : self.steps_per_epoch * self.batch_size])

    def _sample(self, epoch: int, item: int) -> Sample:
        rng = generator("augment", self._seed, epoch, item)
        for _ in range(MAX_REDRAWS):
            try:
                pixels, label = self._pixels(item)
            except UnreadableImageError as error:
                self._skips.add(item, self._dataset.name(item), str(error))
                self._skips.warn(self.num_samples)
                item = self._indices[rng.randrange(len(self._indices))]
            else:
                return self._augmented(pixels, rng), label
        first = self._skips.items()[0]
        raise DataError(
            f"{MAX_REDRAWS} images in a row of {self.description} are unreadable; "
            f"the first: {first.name} ({first.reason})"
        )

    def _pixels(self, index: int) -> Sample:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        shrink_to = None if self._augment is None else 2 * max(self.config.input_size[1:])
        image, label = self._dataset.load(index, self.config.image_mode, shrink_to)
        sample = self._prepared(image), label
        self._cache.put(index, sample, sample[0].numel())
        return sample


class StreamTrainingBatches(TrainingBatches):
    """Training batches of a data set that can only be iterated; timm shuffles each epoch, seeded by (seed, epoch).

    With `options.num_samples`, an epoch is that many images of a shuffled pass. Damaged records are dropped and
    logged by timm's readers. Resuming within an epoch decodes its beginning again.
    """

    def __init__(self, stream: StreamSet, config: InputConfig, options: DataOptions, augment: Augment | None) -> None:
        num_samples = options.num_samples or stream.num_samples
        if not num_samples:
            raise DataError(f"the number of images of {stream.description} is not known: pass `num_samples`")
        self._stream = stream
        super().__init__(stream.description, num_samples, config, options, augment)

    def _epoch_items(self, epoch: int, start: int) -> Iterator[StreamedImage]:
        return islice(self._passes(epoch), start, self.steps_per_epoch * self.batch_size)

    def _passes(self, epoch: int) -> Iterator[StreamedImage]:
        """Shuffled passes, one after the other: dropped records may leave one short of an epoch."""
        for again in count():
            seed = generator("stream", self._seed, epoch, again).getrandbits(31)
            images = self._stream.stream(seed)
            first = next(images, None)
            if first is None:
                raise DataError(f"no images in {self.description}")
            yield from chain([first], images)

    def _sample(self, epoch: int, item: StreamedImage) -> Sample:
        rng = generator("augment", self._seed, epoch, item.position)
        return self._augmented(self._prepared(item.image.convert(self.config.image_mode)), rng), item.label


def training_loader(
    model: nn.Module,
    options: DataOptions,
    augment: Augment | None = Augment(),
    *,
    split: str | None = None,
    without: Collection[int] = (),
) -> TrainingBatches:
    """The split `options.train_split` (or `split`) as an endless, resumable stream of batches for `model`.

    Args:
        without: places in the data set of images that are never served, such as those that judge what was trained.

    Raises:
        DataError: nothing to open, or images to leave out of a data set that can only be iterated.
    """
    dataset = open_dataset(options, split or options.train_split)
    if not options.class_map:
        matched_quietly(dataset, model)
    config = resolve_input(model, options)
    if augment is not None:
        augment = augment.resolved(model)
    if isinstance(dataset, StreamSet):
        if without:
            raise DataError(f"no image can be left out of {dataset.description}, which is a stream")
        return StreamTrainingBatches(dataset, config, options, augment)
    return FileTrainingBatches(dataset, config, options, augment, frozenset(without))
