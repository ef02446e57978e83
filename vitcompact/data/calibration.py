"""Calibration images from files: a seeded random subset, prepared for a model, re-read from memory where it fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vitcompact.data.config import normalize, resolve_input
from vitcompact.data.decode import Skipped
from vitcompact.data.image_set import StreamSet
from vitcompact.data.open import open_dataset
from vitcompact.data.pipeline import TransformedImages
from vitcompact.data.prefetch import chunked
from vitcompact.data.sampling import random_subset, sample_stream
from vitcompact.data.share import runs_of
from vitcompact.options.data import DataOptions
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.progress import Progress, silent


class CalibrationImages:
    """`ImageBatches` from a data set: the same batches, in the same order, on every pass.

    `options.num_samples` images are chosen at random over the whole data set (class folders are sorted, so the first
    n would be one class) and prepared by the evaluation transform of the model. Of a stream, a seeded sample of
    its beginning is taken, see `sample_stream`. Every chosen image is decoded once here, so that unreadable ones are
    known from the start: they are skipped, named in `skipped`, and nothing takes their place.

    Attributes:
        from_stream: the data set can only be iterated.

    Args:
        model: a timm module, or its `pretrained_cfg`.
        options: the data set, overrides of the preparation, batch size, seed and memory for decoded images.
        split: split to read; None is `options.train_split`.
        progress: told of each batch of the first pass.
        processes: those that share the images (`shared_images`): each looks at its part of them first.

    Raises:
        DataError: nothing to open, or not one readable image.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        options: DataOptions,
        *,
        split: str | None = None,
        progress: Progress = silent,
        processes: Processes = ALONE,
    ) -> None:
        self.config = resolve_input(model, options)
        dataset = open_dataset(options, split or options.train_split)
        self.from_stream = isinstance(dataset, StreamSet)
        if isinstance(dataset, StreamSet):
            dataset = sample_stream(dataset, options.num_samples, options.seed)
        indices = random_subset(len(dataset), options.num_samples, options.seed)
        self._images = TransformedImages(
            dataset, indices, self.config, options.batch_size, options.workers, options.cache_mb
        )
        self._num_batches = 0
        progress.start("decode images", len(self._images))
        for _ in self._images if not processes.several else self._looked_at(processes):
            self._num_batches += 1
            progress.advance()
        progress.finish()

    def _looked_at(self, processes: Processes) -> Iterator[object]:
        """Decode a part of the images, and learn from the others which of theirs cannot be read."""
        processes.check_same("calibration images", len(self._images.indices))
        skips, indices = self._images.skips, self._images.indices
        own = runs_of(len(indices), processes.rank, processes.world, self._images.batch_size)
        for _ in self._images.batches([indices[run.start : run.stop] for run in own]):
            pass
        for found in processes.gathered([(index, *item) for index, item in skips.numbered()]):
            for index, name, reason in found:
                skips.add(index, name, reason)
        skips.warn(len(indices))
        skips.refuse_all(len(indices), self.description)
        unread = skips.indices()
        yield from (chunk for chunk in chunked(indices, self._images.batch_size) if not unread.issuperset(chunk))

    def at(self, runs: Iterable[range]) -> Iterator[Tensor]:
        """The images at some places of a pass, a batch for each run of places."""
        unread = self._images.skips.indices()
        readable = [index for index in self._images.indices if index not in unread]
        for images, _ in self._images.batches([readable[run.start : run.stop] for run in runs]):
            yield normalize(images, self.config)

    @property
    def description(self) -> str:
        """The data set that the images come from."""
        return self._images.dataset.description

    @property
    def batch_size(self) -> int:
        """Images a batch, but for those that cannot be read."""
        return self._images.batch_size

    @property
    def num_samples(self) -> int:
        """Number of images of one pass, without the skipped ones."""
        return len(self._images.indices) - len(self._images.skips)

    @property
    def places(self) -> list[int]:
        """Where each image of a pass stands in the data set; of a stream, in the sample of it."""
        unread = self._images.skips.indices()
        return [index for index in self._images.indices if index not in unread]

    @property
    def skipped(self) -> list[Skipped]:
        """Chosen images that cannot be read, with the reason."""
        return self._images.skips.items()

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Tensor]:
        """Normalised float32 (batch, channels, height, width)."""
        for images, _ in self._images:
            yield normalize(images, self.config)
