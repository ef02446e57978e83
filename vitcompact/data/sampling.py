"""Seeded choices: which images are used, and in which order. Nothing here depends on batch size or threads."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from vitcompact.data.image_set import DecodedSet, StreamedImage, StreamSet
from vitcompact.errors import DataError

STREAM_WINDOW = 16
"""A sample of n images is drawn from the first `STREAM_WINDOW * n` of a stream."""


def generator(*key: int | str) -> random.Random:
    """An independent random generator for each key, the same on every machine."""
    return random.Random("/".join(str(part) for part in key))


def part_of(size: int, rank: int, world: int) -> slice:
    """What of `size` things in a row is the share of process `rank` of `world`: together all of them, none twice."""
    return slice(rank * size // world, (rank + 1) * size // world)


def shuffled(size: int, *key: int | str) -> list[int]:
    """All of 0..size-1 in a random order that depends on `key` only."""
    rng = torch.Generator().manual_seed(generator(*key).getrandbits(63))
    return torch.randperm(size, generator=rng).tolist()


def random_subset(size: int, num_samples: int | None, seed: int) -> list[int]:
    """`num_samples` of 0..size-1 (all for None), spread over the whole range, in random order.

    The first few of a larger subset are the smaller subset of the same seed.
    """
    return shuffled(size, "subset", seed)[: size if num_samples is None else num_samples]


def sample_stream(stream: StreamSet, num_samples: int | None, seed: int) -> DecodedSet:
    """A seeded reservoir sample of the first `STREAM_WINDOW * num_samples` images, held decoded in memory.

    A window, since a whole pass over a large stream only to choose a few hundred images would cost hours; shards
    are written shuffled, so its beginning is as good as any part.

    Raises:
        DataError: `num_samples` is None (a stream may not end), or the stream is empty.
    """
    if num_samples is None:
        raise DataError(f"{stream.description} is a stream: say how many of its images to use with `num_samples`")
    kept: list[StreamedImage] = []
    rng = generator("stream", seed)
    for item in _first(stream, STREAM_WINDOW * num_samples):
        if len(kept) < num_samples:
            kept.append(item)
        elif (slot := rng.randrange(item.position + 1)) < num_samples:
            kept[slot] = item
    if not kept:
        raise DataError(f"no images in {stream.description}")
    return DecodedSet([(item.image, item.label) for item in kept], stream.description, stream.class_names, "sample")


def _first(stream: StreamSet, count: int) -> Iterator[StreamedImage]:
    for item in stream.stream():
        if item.position >= count:
            return
        yield item
