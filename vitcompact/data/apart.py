"""Images taken apart by their place among all: those that judge a model are seen by nothing that makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vitcompact.data.batches import ImageBatches
from vitcompact.data.decode import Skipped

EVERY = 4
"""One image in so many is set apart: enough to judge by, and spread over the whole of an ordered set."""


def is_apart(place: int) -> bool:
    """Whether the image at `place`, from 0, is set apart."""
    return place % EVERY == EVERY - 1


def chosen_of(batches: Iterable[Any], wanted: Callable[[int], bool]) -> Iterator[Any]:
    """Batches of images, or of `(images, labels)`, with the images at the places that are `wanted`."""
    start = 0
    for batch in batches:
        parts = (batch,) if isinstance(batch, Tensor) else tuple(batch)[:2]
        rows = torch.tensor([i for i in range(len(parts[0])) if wanted(start + i)], dtype=torch.int64)
        start += len(parts[0])
        if len(rows):
            taken = [part[rows.to(part.device)] for part in parts]
            yield taken[0] if isinstance(batch, Tensor) else tuple(taken)


class PartImages:
    """`ImageBatches` of the images of others that are set apart, or of the rest."""

    def __init__(self, images: ImageBatches, apart: bool) -> None:
        self._images, self._apart = images, apart

    @property
    def num_samples(self) -> int:
        apart = sum(is_apart(place) for place in range(self._images.num_samples))
        return apart if self._apart else self._images.num_samples - apart

    @property
    def skipped(self) -> list[Skipped]:
        return self._images.skipped

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Tensor]:
        return chosen_of(self._images, lambda place: is_apart(place) == self._apart)


def taken_apart(images: ImageBatches) -> tuple[ImageBatches, ImageBatches]:
    """The images to work with, and those to judge by; of fewer than two judges all images are both."""
    rest, judging = PartImages(images, apart=False), PartImages(images, apart=True)
    return (rest, judging) if judging.num_samples > 1 else (images, images)
