"""Calibration images shared by processes: who has which, by their places among all, whatever the batches.

Images are dealt out in groups of `GROUP`, so that the first few hundred are everybody's work too, and within a group in
runs of whole units of `UNIT`, in which random directions are drawn (`calibration.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, cat, zeros

from vitcompact.data.batches import ImageBatches, rebatched
from vitcompact.data.decode import Skipped
from vitcompact.data.sampling import part_of
from vitcompact.utils.processes import ALONE, Processes

UNIT = 4
GROUP = 64


def runs_of(total: int, rank: int, world: int, longest: int = GROUP) -> list[range]:
    """The places of process `rank` of `world` among `total` images, in runs of at most `longest`."""
    group = GROUP * -(-world * UNIT // GROUP)
    found = []
    for start in range(0, total, group):
        units = range(start, min(start + group, total), UNIT)
        own = units[part_of(len(units), rank, world)]
        end = min(own.stop, start + group, total) if own else start
        found += [range(place, min(place + longest, end)) for place in range(own.start, end, longest)]
    return found


class ImageShare:
    """`ImageBatches` of one of several processes, each of which makes it of the same images.

    `num_samples` counts the images of all. What is measured on such images is summed over the processes.

    Attributes:
        runs: the places of each batch's images among all.

    Args:
        images: those of all; of `CalibrationImages` no more than this process's are read.

    Raises:
        UsageError: too few images for all to have some.
    """

    def __init__(self, images: ImageBatches, processes: Processes, count: int | None = None) -> None:
        self._images, self.processes = images, processes
        self.num_samples = min(images.num_samples, count or images.num_samples)
        if count is None:
            processes.check_enough(f"{self.num_samples} calibration images", self.num_samples // UNIT)
        self._longest = getattr(images, "batch_size", None) or len(next(iter(images)))
        self.runs = runs_of(self.num_samples, processes.rank, processes.world, self._longest)

    def first(self, count: int) -> ImageShare:
        """The same of the first `count` images of all."""
        return ImageShare(self._images, self.processes, count)

    @property
    def skipped(self) -> list[Skipped]:
        """As of the images of all."""
        return self._images.skipped

    def example(self, count: int) -> Tensor:
        """The first `count` images of all, which every process reads."""
        return next(self._read([range(min(count, self.num_samples))]))

    def of_all(self, places: list[int]) -> Tensor:
        """The images at some places among all, which every process gets and one reads."""
        found: Tensor | None = None
        for run, batch in zip(self.runs, self, strict=True):
            found = batch.new_zeros(len(places), *batch.shape[1:]) if found is None else found
            for row, place in enumerate(places):
                if place in run:
                    found[row] = batch[place - run.start]
        shape = self.example(1).shape[1:]
        whole = zeros(len(places), *shape) if found is None else found
        self.processes.total(whole)
        return whole

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Tensor]:
        return self._read(self.runs)

    def _read(self, runs: list[range]) -> Iterator[Tensor]:
        read = getattr(self._images, "at", None)
        found: Iterator[Tensor] = _cut(self._images, runs) if read is None else read(runs)
        return found


def shared_images(images: ImageBatches, processes: Processes) -> ImageBatches:
    """This process's share of images; all of them for one alone."""
    return ImageShare(images, processes) if processes.several else images


def example_of(images: ImageBatches, count: int) -> Tensor:
    """The first images, as many as `count` where there are, the same in all processes that share them."""
    return images.example(count) if isinstance(images, ImageShare) else next(rebatched(images, count))


def processes_of(images: ImageBatches | None) -> Processes:
    """The processes that share images."""
    found: Processes = getattr(images, "processes", ALONE)
    return found


def placed(images: ImageBatches) -> Iterator[tuple[int, Tensor]]:
    """Batches with the place of their first image among all."""
    if isinstance(images, ImageShare):
        yield from ((run.start, batch) for run, batch in zip(images.runs, images, strict=True))
        return
    start = 0
    for batch in images:
        yield start, batch
        start += len(batch)


def _cut(images: ImageBatches, runs: list[range]) -> Iterator[Tensor]:
    """The images at places that ascend, where all have to be read to get at them."""
    start, held, waiting = 0, None, iter(images)
    for run in runs:
        parts: list[Tensor] = []
        while sum(map(len, parts)) < len(run):
            if held is None:
                held = next(waiting)
            wanted = run.start + sum(map(len, parts))
            if wanted >= start + len(held):
                start, held = start + len(held), None
                continue
            parts.append(held[wanted - start : run.stop - start])
        yield parts[0] if len(parts) == 1 else cat(parts)
