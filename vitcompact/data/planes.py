"""Pictures of other than one or three channels: numpy files, TIFFs of several pages, images with that many bands."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

_MAX_VALUES = 600_000_000
_NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Planes:
    """One grey 8-bit Pillow image a channel, all of one size."""

    images: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.images[0].size


def array_planes(content: bytes, channels: int) -> Planes | None:
    """The channels of a numpy file, None where `content` is none.

    Axes are (channels, height, width) or (height, width, channels); values are 8-bit, 16-bit (scaled to 8), or floating
    point from 0 to 1.

    Raises:
        ValueError: another shape, type or range.
    """
    if not content.startswith(_NPY):
        return None
    values = np.load(io.BytesIO(content), allow_pickle=False)
    if values.ndim == 3 and values.shape[0] != channels and values.shape[2] == channels:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != channels or not values.size or values.size > _MAX_VALUES:
        raise ValueError(f"an array {values.shape}, the model takes {channels} channels")
    return Planes(tuple(Image.fromarray(plane) for plane in _bytes(values)))


def image_planes(image: Image.Image, channels: int) -> Planes:
    """The pages, or the bands, of an opened image.

    Raises:
        ValueError: not that many.
    """
    pages = int(getattr(image, "n_frames", 1))
    if pages == channels:
        planes = []
        for page in range(pages):
            image.seek(page)
            planes.append(Image.fromarray(_bytes(np.asarray(image))))
        if {plane.mode for plane in planes} != {"L"} or len({plane.size for plane in planes}) != 1:
            raise ValueError("its pages are no grey images of one size")
        return Planes(tuple(planes))
    bands = image.split()
    if pages > 1 or len(bands) != channels:
        raise ValueError(f"{max(pages, len(bands))} channels, the model takes {channels}")
    return Planes(tuple(bands))


def _bytes(values: np.ndarray) -> np.ndarray:
    """Values as 8 bits."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint16:
        return (values // 257).astype(np.uint8)
    if values.dtype.kind == "f" and np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
        return np.rint(values * 255).astype(np.uint8)
    raise ValueError(f"values of the type {values.dtype} that are neither 8 nor 16 bits nor from 0 to 1")
