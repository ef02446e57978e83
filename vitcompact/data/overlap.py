"""How many images two data sets share, byte for byte: calibrating or training on evaluation images flatters results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from vitcompact.data.decode import UnreadableImageError
from vitcompact.data.image_set import ImageSet, StreamSet
from vitcompact.data.open import open_dataset
from vitcompact.data.sampling import random_subset
from vitcompact.options.data import DataOptions


def overlap(calibration: DataOptions, evaluation: DataOptions, *, limit: int = 10_000) -> int:
    """Number of identical images in the calibration (or training) and the evaluation images.

    Of the first, exactly the images that `CalibrationImages` or `training_loader` use are compared, of the second all
    or those that `num_samples` chooses; of both at most `limit`, taken at random, so that the answer is a lower bound
    for larger sets. Streams cannot be compared without decoding them all and count as 0.

    Raises:
        DataError: one of them cannot be opened.
    """
    first = open_dataset(calibration, calibration.train_split)
    second = open_dataset(evaluation, evaluation.val_split)
    if isinstance(first, StreamSet) or isinstance(second, StreamSet):
        return 0
    known = set(_digests(first, random_subset(len(first), calibration.num_samples, calibration.seed)[:limit]))
    chosen = random_subset(len(second), evaluation.num_samples, evaluation.seed)[:limit]
    return sum(digest in known for digest in _digests(second, chosen))


def _digests(dataset: ImageSet, indices: Iterable[int]) -> Iterator[bytes]:
    for index in indices:
        try:
            yield hashlib.sha256(dataset.content(index)).digest()
        except UnreadableImageError:
            continue
