"""One face for timm's map-style and iterable data sets: names, undecoded bytes, decoded images, labels."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from PIL import Image

from vitcompact.data.decode import UnreadableImageError, decode, decode_planes, is_rotated
from vitcompact.data.planes import Planes
from vitcompact.errors import DataError, VitCompactError

NO_LABEL = -1


class ImageSet(ABC):
    """Images that can be read by index, in a fixed order.

    Attributes:
        description: what it is, for messages.
        class_names: names of the classes in label order; empty when the images have none or it is not known.
        labelled: the images have labels.
        label_map: the model's class of each label, where they are not the same; see `match_classes`.
        left_out: files beside the images that were not taken, for a message.
        rotated: images loaded so far that ask viewers to turn them.
    """

    description: str
    class_names: tuple[str, ...] = ()
    labelled: bool = True
    label_map: tuple[int, ...] = ()
    rotated: set[int]
    left_out: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of an image inside the data set."""

    @abstractmethod
    def load(self, index: int, mode: str = "RGB", shrink_to: int | None = None) -> tuple[Image.Image | Planes, int]:
        """The decoded image and its label (-1 for none); see `decode` for `mode` and `shrink_to`.

        Raises:
            UnreadableImageError: it cannot be read or decoded.
        """

    def size(self, index: int) -> int:
        """Bytes of an image's file, 0 where that is not known without reading it."""
        return 0

    def label(self, target: Any) -> int:
        """The model's class index of a label, -1 for none."""
        return mapped(as_label(target), self.label_map)

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Bytes that identify the image: those of its file, or of its pixels where there is no file."""


class ReaderSet(ImageSet):
    """A timm reader (folder, tar, Hugging Face data set), read without timm's replacement of unreadable images.

    timm's `ImageDataset` answers an unreadable index with the next readable image, which would count that one twice.
    """

    def __init__(self, reader: Any, description: str, class_names: Sequence[str], labelled: bool) -> None:
        self.reader = reader
        self.description = description
        self.class_names = tuple(class_names)
        self.labelled = labelled
        self.rotated = set()
        # Readers of tars and of Hugging Face data sets share one open file.
        self._lock = nullcontext() if type(reader).__name__ == "ReaderImageFolder" else threading.Lock()

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        try:
            return str(self.reader.filename(index) or f"image {index}")
        except Exception:
            return f"image {index}"

    def load(self, index: int, mode: str = "RGB", shrink_to: int | None = None) -> tuple[Image.Image | Planes, int]:
        content, target = self._read(index)
        if is_rotated(content):
            self.rotated.add(index)
        image = decode_planes(content, int(mode)) if mode.isdecimal() else decode(content, mode, shrink_to)
        return image, self.label(target) if self.labelled else NO_LABEL

    def size(self, index: int) -> int:
        samples = getattr(self.reader, "samples", ())
        found = samples[index][0] if index < len(samples) else None  # a path, or the entry of a tar
        try:
            return os.path.getsize(found) if isinstance(found, str) else int(getattr(found, "size", 0))
        except OSError:
            return 0

    def content(self, index: int) -> bytes:
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[bytes, Any]:
        try:
            with self._lock:
                file, target, *_ = self.reader[index]
                with file:
                    return file.read(), target
        except Exception as error:  # a vanished file, a damaged archive, a broken record: all the same to the caller
            raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


class DecodedSet(ImageSet):
    """Pillow images behind an index: a torchvision data set, or a sample held in memory."""

    def __init__(self, images: Any, description: str, class_names: Sequence[str] = (), name: str = "image") -> None:
        self._images = images
        self.description = description
        self.class_names = tuple(class_names)
        self._name = name
        self.rotated = set()

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._name} {index}"

    def load(self, index: int, mode: str = "RGB", shrink_to: int | None = None) -> tuple[Image.Image, int]:
        try:
            image, target = self._images[index]
            return image.convert(mode), self.label(target)
        except Exception as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}") from error

    def content(self, index: int) -> bytes:
        return self.load(index)[0].tobytes()


class StreamedImage(NamedTuple):
    """One element of a stream: its place in it, the decoded image and its label (-1 for none)."""

    position: int
    image: Image.Image
    label: int


class StreamSet:
    """A data set that can only be iterated (`wds/`, `hfids/`, `tfds/`).

    Args:
        open_stream: opens the data set for one pass; its argument is None for the plain order, else the seed of a
            shuffled one.
        description: what it is, for messages.
        class_names: names of the classes in label order, where known.
        num_samples: number of images, 0 where it is not known.
    """

    def __init__(
        self,
        open_stream: Callable[[int | None], Iterable[Any]],
        description: str,
        class_names: Sequence[str] = (),
        num_samples: int = 0,
    ) -> None:
        self._open = open_stream
        self.description = description
        self.class_names = tuple(class_names)
        self.num_samples = num_samples
        self.label_map: tuple[int, ...] = ()

    def stream(self, shuffle_seed: int | None = None) -> Iterator[StreamedImage]:
        """One pass; a damaged record is dropped by timm's reader, which logs it."""
        items = enumerate(self._open(shuffle_seed))
        while (found := self._next(items)) is not None:
            position, (image, target) = found
            yield StreamedImage(position, image, mapped(as_label(target), self.label_map))

    def _next(self, items: Iterator[tuple[int, Any]]) -> tuple[int, Any] | None:
        try:
            return next(items, None)
        except (VitCompactError, MemoryError):
            raise
        except Exception as error:  # of timm's readers, or of the library behind them
            raise DataError(f"{self.description} cannot be read: {str(error) or type(error).__name__}") from error


def mapped(label: int, label_map: Sequence[int]) -> int:
    """The model's class of a label, itself where there is no map."""
    return label_map[label] if 0 <= label < len(label_map) else label


def as_label(target: Any) -> int:
    """A class index, or -1 where the data set has none."""
    return NO_LABEL if target is None else int(target)
