"""The shape in which every part of the library receives images: `ImageBatches`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vitcompact.data.decode import Skipped
from vitcompact.errors import DataError, UsageError

MEMORY_LIMIT_MB = 4096

LARGEST_NORMALISED, LARGEST_PIXEL = 20.0, 255.0
"""Values that no mean and deviation make of an image: none below zero and some above the first, or above the second."""


@runtime_checkable
class ImageBatches(Protocol):
    """Normalised images in batches: the same batches in the same order on every pass."""

    @property
    def num_samples(self) -> int:
        """Number of images of one pass."""

    @property
    def skipped(self) -> list[Skipped]:
        """Images that were chosen but cannot be used, with the reason."""

    def __len__(self) -> int:
        """Number of batches of one pass."""

    def __iter__(self) -> Iterator[Tensor]:
        """float32 (batch, channels, height, width)."""


class TensorImages:
    """`ImageBatches` over tensors held in memory; made by `from_tensor`."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches = batches

    @property
    def num_samples(self) -> int:
        return sum(len(batch) for batch in self._batches)

    @property
    def skipped(self) -> list[Skipped]:
        return []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._batches)


def first_images(images: ImageBatches, count: int) -> ImageBatches:
    """The first `count` images, or all where there are fewer, in batches as they come; of a share, its part of them."""
    if (first := getattr(images, "first", None)) is not None:
        found: ImageBatches = first(count)
        return found
    chosen: list[Tensor] = []
    for batch in images:
        chosen.append(batch[:count])
        count -= len(batch)
        if count <= 0:
            break
    return TensorImages(chosen)


def rebatched(images: ImageBatches, batch_size: int) -> Iterator[Tensor]:
    """The same images in the same order, `batch_size` at a time."""
    waiting: list[Tensor] = []
    for batch in images:
        for image in batch.split(1):
            waiting.append(image)
            if len(waiting) == batch_size:
                yield torch.cat(waiting)
                waiting = []
    if waiting:
        yield torch.cat(waiting)


def from_tensor(
    images: Tensor | Iterable[Any] | ImageBatches,
    batch_size: int = 64,
    *,
    channels: int = 3,
    limit_mb: int = MEMORY_LIMIT_MB,
) -> ImageBatches:
    """Images of the library interface as `ImageBatches`.

    Args:
        images: normalised images, (n, channels, height, width); or an iterable of such batches (a generator, a
            `DataLoader`; of an (images, labels) batch the labels are ignored). An iterable is read once and kept, since
            several passes must see the same batches. `ImageBatches` are returned as they are.
        batch_size: larger batches are split to this size.
        channels: channels that the model takes.
        limit_mb: memory in MiB that an iterable may fill.

    Raises:
        UsageError: wrong type, shape or dtype, values that are not finite, no images, or more than `limit_mb`.
        DataError: values that no normalisation gives.
    """
    if isinstance(images, TensorImages) or (isinstance(images, ImageBatches) and not isinstance(images, Tensor)):
        return images
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(images, Tensor):
        given: Iterable[Any] = [images]
    elif isinstance(images, Iterable) and not isinstance(images, (str, bytes, dict)):
        given = images
    else:
        raise UsageError(
            f"images must be a tensor (n, {channels}, height, width) or an iterable of them, got {_kind(images)}"
        )
    batches = list(_collect(given, channels, None if isinstance(images, Tensor) else limit_mb * 2**20))
    if not batches:
        raise UsageError("images are empty: at least one image is needed")
    return TensorImages([part for batch in batches for part in batch.split(batch_size)])


def _collect(given: Iterable[Any], channels: int, room: int | None) -> Iterator[Tensor]:
    used, size = 0, None
    for item in given:
        batch = check_batch(item, channels)
        if len(batch) == 0:
            continue
        size = size or batch.shape[2:]
        if batch.shape[2:] != size:
            raise UsageError(f"all images must have one size, got {_size(size)} and {_size(batch.shape[2:])}")
        used += batch.numel() * batch.element_size()
        if room is not None and used > room:
            raise UsageError(
                f"the batches exceed {room // 2**20} MiB, the limit for images kept in memory: pass fewer images, "
                "or CalibrationImages, which reads from files"
            )
        yield batch


def check_batch(item: Any, channels: int) -> Tensor:
    """One batch of normalised images as float32, without its labels.

    Raises:
        UsageError: wrong type, shape or dtype, or values that are not finite.
        DataError: values that no normalisation gives.
    """
    batch = item[0] if isinstance(item, (tuple, list)) and item else item
    if not isinstance(batch, Tensor):
        raise UsageError(f"each batch must be a tensor (n, {channels}, height, width), got {_kind(batch)}")
    shape = tuple(batch.shape)
    if batch.ndim != 4 or shape[1] != channels:
        hint = " (channels come second: permute(0, 3, 1, 2))" if batch.ndim == 4 and shape[3] == channels else ""
        raise UsageError(f"images must have the shape (n, {channels}, height, width), got {shape}{hint}")
    if not batch.dtype.is_floating_point:
        raise UsageError(
            f"images must be normalised floating-point values, got {batch.dtype}: apply the transform first"
        )
    batch = batch.detach().to(torch.float32)
    if not bool(torch.isfinite(batch).all()):
        raise UsageError("images contain values that are not finite (nan or inf)")
    smallest, largest = (float(batch.min()), float(batch.max())) if batch.numel() else (0.0, 0.0)
    if largest > (LARGEST_NORMALISED if smallest >= 0 else LARGEST_PIXEL):
        raise DataError(
            f"images must be normalised by the model's mean and std, got values up to {largest:g}, as pixels from 0 to "
            "255 have: timm.data.create_transform makes the transform of a model"
        )
    return batch


def _kind(value: object) -> str:
    return type(value).__name__


def _size(size: Iterable[int]) -> str:
    return " x ".join(str(n) for n in size)
