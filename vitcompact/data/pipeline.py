"""Chosen images of a data set, transformed for a model, batch by batch, in the same order on every pass."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vitcompact.data.config import InputConfig, Transform, eval_transform
from vitcompact.data.decode import Skipped, UnreadableImageError
from vitcompact.data.image_set import ImageSet
from vitcompact.data.planes import Planes
from vitcompact.data.prefetch import BoundedCache, chunked, ordered_map
from vitcompact.errors import DataError

logger = logging.getLogger("vitcompact")

Sample = tuple[Tensor, int]
"""One transformed image, uint8 (channels, height, width), with its label (-1 for none)."""


class SkipList:
    """Names and reasons of the images that could not be used, each once, in the order of their index. Thread-safe."""

    def __init__(self) -> None:
        self._found: dict[int, Skipped] = {}
        self._lock = threading.Lock()
        self._warned = 0

    def add(self, index: int, name: str, reason: str) -> None:
        with self._lock:
            self._found.setdefault(index, Skipped(name, reason))

    def items(self) -> list[Skipped]:
        with self._lock:
            return [self._found[index] for index in sorted(self._found)]

    def numbered(self) -> list[tuple[int, Skipped]]:
        """The same with their indices."""
        with self._lock:
            return sorted(self._found.items())

    def indices(self) -> set[int]:
        with self._lock:
            return set(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def warn(self, total: int, limit: int = 5) -> None:
        """Log what was skipped since the last warning, naming the first few."""
        if len(self) == self._warned:
            return
        self._warned = len(self)
        named = ", ".join(f"{name} ({reason})" for name, reason in self.items()[:limit])
        more = f" and {len(self) - limit} more" if len(self) > limit else ""
        logger.warning("skipped %d unreadable of %d images: %s%s", len(self), total, named, more)

    def refuse_all(self, total: int, description: str) -> None:
        """Raises DataError where every image was skipped."""
        if len(self) >= total:
            first = self.items()[0]
            raise DataError(
                f"none of the {total} images of {description} can be read; the first: {first.name} ({first.reason})"
            )


class TransformedImages:
    """The images `indices` of `dataset` by timm's evaluation transform, as uint8 batches with labels.

    An unreadable image makes its batch one shorter; nothing takes its place. Transformed images stay in memory
    up to `cache_mb` MiB, so that later passes decode only the rest.

    Args:
        partial: these are some of the images that are looked at: it does not matter if none of them can be read.

    Raises:
        DataError: on iteration, when not one image could be read.
    """

    def __init__(
        self,
        dataset: ImageSet,
        indices: Sequence[int],
        config: InputConfig,
        batch_size: int,
        workers: int,
        cache_mb: int,
        partial: bool = False,
    ) -> None:
        self.dataset, self._partial = dataset, partial
        self.indices = list(indices)
        self.batch_size = batch_size
        self.skips = SkipList()
        self._config = config
        self._transform = eval_transform(config)
        self._workers = workers
        self._said_rotated = False
        say_left_out(dataset)
        self._cache: BoundedCache[Sample] = BoundedCache(cache_mb)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 (batch, channels, height, width) and int64 (batch,)."""
        yield from self.batches(chunked(self.indices, self.batch_size))
        self.skips.warn(len(self.indices))
        if not self._partial:
            self.skips.refuse_all(len(self.indices), self.dataset.description)
        self._say_rotated()

    def batches(self, chosen: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of some of the images, by their indices in the data set."""
        for samples in ordered_map(self._load, chosen, self._workers):
            if samples:
                yield stack(samples)

    def _say_rotated(self) -> None:
        found = len(self.dataset.rotated)
        if found and not self._said_rotated:
            self._said_rotated = True
            logger.warning(
                "%s: %d images carry an EXIF rotation, which is ignored, as timm does",
                *(self.dataset.description, found),
            )

    def _load(self, indices: Iterable[int]) -> list[Sample]:
        return [sample for index in indices if (sample := self._sample(index)) is not None]

    def _sample(self, index: int) -> Sample | None:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        try:
            image, label = self.dataset.load(index, self._config.image_mode)
        except UnreadableImageError as error:
            self.skips.add(index, self.dataset.name(index), str(error))
            return None
        sample = apply_transform(self._transform, image), label
        self._cache.put(index, sample, sample[0].numel())
        return sample


def say_left_out(dataset: ImageSet) -> None:
    """Log which files beside the images were not taken."""
    if dataset.left_out:
        logger.warning("%s: left out %s", dataset.description, dataset.left_out)


def apply_transform(transform: Transform, image: object) -> Tensor:
    """A transformed image that owns its memory."""
    if isinstance(image, Planes):
        return torch.cat([transform(plane) for plane in image.images])
    return transform(image).contiguous()  # type: ignore[arg-type]


def stack(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """uint8 (batch, channels, height, width) and int64 (batch,).

    By numpy: torch would start its own thread pool inside every thread that decodes.
    """
    images = np.stack([image.numpy() for image, _ in samples])
    return torch.from_numpy(images), torch.tensor([label for _, label in samples], dtype=torch.int64)
