"""Which calibration images are held out: by their place among all images, whatever the batches.

Images are counted in groups of `GROUP`; the last eighth of each group is held out. Whatever looks at some of the images
only takes whole groups, so that nothing depends on how many images go through the model at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

GROUP = 64
HELD_OUT_SHARE = 0.125


def held_out(group_size: int) -> int:
    """Images at the end of a group that no fit sees; choices are made on them. None of a single image."""
    return max(round(group_size * HELD_OUT_SHARE), min(group_size - 1, 1))


def is_held_out(index: int, num_images: int) -> bool:
    """Whether the image at `index` of `num_images` is held out."""
    place, size = index % GROUP, group_size(index // GROUP, num_images)
    return place >= size - held_out(size)


def group_size(group: int, num_images: int) -> int:
    """Images of a group: `GROUP`, or what is left for the last one."""
    return min(GROUP, num_images - group * GROUP)


def whole_groups(num_images: int) -> int:
    """`num_images` rounded up to whole groups."""
    return -(-num_images // GROUP) * GROUP


@dataclass(frozen=True)
class Parts:
    """A batch cut where images that fit and images held out take turns.

    Attributes:
        lengths: images of each part, in order.
        held: whether the images of each part are held out.
    """

    lengths: tuple[int, ...]
    held: tuple[bool, ...]

    @classmethod
    def of(cls, start: int, stop: int, num_images: int) -> Parts:
        """The parts of a batch of the images `start` to `stop`, of `num_images` in all."""
        runs = [(held, len(list(run))) for held, run in groupby(is_held_out(i, num_images) for i in range(start, stop))]
        return cls(tuple(length for _, length in runs), tuple(held for held, _ in runs))

    def slices(self, rows: int) -> Iterator[tuple[bool, slice]]:
        """Whether each part is held out, and where it lies on an axis of `rows`: windows of an image lie together."""
        each, start = rows // sum(self.lengths), 0
        for held, length in zip(self.held, self.lengths, strict=True):
            yield held, slice(start, start + length * each)
            start += length * each
