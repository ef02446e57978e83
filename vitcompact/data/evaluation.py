"""Labelled images for evaluation: a whole split (or a seeded subset) in order, prepared for a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import Tensor, nn

from vitcompact.data.classes import match_classes, warn_number
from vitcompact.data.config import InputConfig, Transform, eval_transform, normalize, resolve_input
from vitcompact.data.decode import Skipped
from vitcompact.data.image_set import ImageSet, StreamedImage, StreamSet
from vitcompact.data.open import open_dataset
from vitcompact.data.pipeline import TransformedImages, apply_transform, stack
from vitcompact.data.prefetch import chunked, ordered_map
from vitcompact.data.sampling import part_of, random_subset
from vitcompact.errors import DataError
from vitcompact.options.data import DataOptions


class EvaluationBatches:
    """Iterable of `(images, labels)`: float32 (batch, channels, height, width) and int64 (batch,), -1 for no label.

    The order is that of the data set and the same on every pass. `num_samples` and `skipped` are exact after a pass.
    """

    def __init__(
        self,
        dataset: ImageSet | StreamSet,
        config: InputConfig,
        options: DataOptions,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.config = config
        self._opened = dataset, config, options
        self.description = dataset.description
        self.class_names = dataset.class_names
        self._source: TransformedImages | _StreamBatches
        if isinstance(dataset, StreamSet):
            self._source = _StreamBatches(dataset, config, options, rank, world)
        else:
            indices = sorted(random_subset(len(dataset), options.num_samples, options.seed))
            own = indices[part_of(len(indices), rank, world)]
            self._source = TransformedImages(
                dataset, own, config, options.batch_size, options.workers, options.cache_mb, world > 1
            )

    def shared(self, rank: int, world: int) -> EvaluationBatches:
        """The images of process `rank` of `world`: a part of the row, of a stream each `world`-th batch."""
        return EvaluationBatches(*self._opened, rank, world)

    @property
    def num_samples(self) -> int | None:
        """Number of images without those found unreadable so far; None for a stream that was not read to its end."""
        if isinstance(self._source, _StreamBatches):
            return self._source.num_samples
        return len(self._source.indices) - len(self._source.skips)

    @property
    def num_batches(self) -> int | None:
        """Number of batches, for progress; None for a stream."""
        return None if isinstance(self._source, _StreamBatches) else len(self._source)

    @property
    def skipped(self) -> list[Skipped]:
        """Images found unreadable so far, with the reason."""
        return [] if isinstance(self._source, _StreamBatches) else self._source.skips.items()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._source:
            yield normalize(images, self.config), labels


def evaluation_batches(model: nn.Module, options: DataOptions, *, split: str | None = None) -> EvaluationBatches:
    """The split `options.val_split` (or `split`) prepared for `model`.

    Classes are matched by their names; a warning says where they may not be the model's.

    Raises:
        DataError: nothing to open; classes of which only some are the model's; on iteration, not one readable image.
    """
    dataset = open_dataset(options, split or options.val_split)
    if options.class_map:
        warn_number(dataset, model)
    else:
        match_classes(dataset, model)
    return EvaluationBatches(dataset, resolve_input(model, options), options)


class _StreamBatches:
    """uint8 batches with labels of a stream, whose damaged records timm's reader drops and logs by itself."""

    def __init__(self, stream: StreamSet, config: InputConfig, options: DataOptions, rank: int, world: int) -> None:
        self._stream, self._rank, self._world = stream, rank, world
        self._mode = config.image_mode
        self._transform: Transform = eval_transform(config)
        self._options = options
        self.num_samples: int | None = options.num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        every = chunked(self._limited(), self._options.batch_size)
        chunks = islice(every, self._rank, None, self._world)
        for images, labels in ordered_map(self._transformed, chunks, self._options.workers):
            seen += len(labels)
            yield images, labels
        self.num_samples = seen
        if not seen and self._world == 1:
            raise DataError(f"no images in {self._stream.description}")

    def _limited(self) -> Iterator[StreamedImage]:
        """A random subset of a stream would need its length: the first `num_samples` are taken."""
        for item in self._stream.stream():
            if self._options.num_samples is not None and item.position >= self._options.num_samples:
                return
            yield item

    def _transformed(self, items: list[StreamedImage]) -> tuple[Tensor, Tensor]:
        return stack([(apply_transform(self._transform, i.image.convert(self._mode)), i.label) for i in items])
