"""A short name for the images of a data set, by which replaced ones are noticed."""

from __future__ import annotations

import hashlib

from vitcompact.data.decode import UnreadableImageError
from vitcompact.data.image_set import StreamSet
from vitcompact.data.open import open_dataset
from vitcompact.options.data import DataOptions

READ = 64
"""Images whose content is read; of all others the names and sizes count."""


def fingerprint(options: DataOptions) -> str | None:
    """Hex SHA-256 over names and sizes of all images of the training split, and the content of `READ` of them.

    None for a stream, which cannot be looked at without reading all of it.

    Raises:
        DataError: it cannot be opened.
    """
    dataset = open_dataset(options, options.train_split)
    if isinstance(dataset, StreamSet):
        return None
    count, digest = len(dataset), hashlib.sha256()
    for index in range(count):
        digest.update(f"{dataset.name(index)}\0{dataset.size(index)}\n".encode("utf-8", "surrogateescape"))
    for index in sorted({count * i // READ for i in range(READ)}):
        try:
            digest.update(hashlib.sha256(dataset.content(index)).digest())
        except UnreadableImageError:
            digest.update(b"unreadable")
    return digest.hexdigest()
