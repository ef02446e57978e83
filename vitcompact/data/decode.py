"""Bytes of an image file to pixels; whatever is wrong with the file becomes one exception with a short reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitcompact.data.planes import Planes, array_planes, image_planes

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
"""Kinds of files that are opened, whatever they are called; others may start programs (EPS starts Ghostscript)."""
MAX_PIXELS = 120_000_000
"""A larger image is left out before it is decoded: more than cameras take, and gigabytes to hold."""
MAX_ASPECT = 100
"""Longest side over shortest: beyond it, resizing the short side to a model's input would need gigabytes."""


_ORIENTATION, _EXIF_WITHIN = 0x0112, 1 << 12


class Skipped(NamedTuple):
    """An image that could not be used: its name inside the data set, and why."""

    name: str
    reason: str


class UnreadableImageError(Exception):
    """An image that cannot be decoded; never leaves this package."""


def decode(content: bytes, mode: str = "RGB", shrink_to: int | None = None) -> Image.Image:
    """Decode the bytes of an image file into a fully loaded Pillow image of `mode` (`RGB` or `L`).

    Alpha is dropped and orientation tags are ignored, as in timm; 16-bit greys are scaled to 8 bits, where a plain
    conversion would clip nearly all of them to white.

    Args:
        content: the file.
        mode: mode of the result.
        shrink_to: images whose short side is at least twice as long are reduced by a whole factor while decoding
            (a large photograph then costs a fraction of the time); None keeps every pixel.

    Raises:
        UnreadableImageError: anything is wrong with the file. Decoders raise many unrelated types on damaged files,
            so all of them are translated here.
    """
    with _one_error(content), Image.open(io.BytesIO(content), formats=readable_formats()) as image:
        _check_shape(image)
        return _convert(_load(image, shrink_to), mode)


def decode_planes(content: bytes, channels: int) -> Planes:
    """Decode a picture of any number of channels; see `array_planes` and `image_planes`.

    Raises:
        UnreadableImageError: anything is wrong with the file, or it has another number of channels.
    """
    with _one_error(content):
        planes = array_planes(content, channels)
        if planes is None:
            with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
                _check_shape(image)
                return image_planes(image, channels)
        _check_shape(planes.images[0])
        return planes


@contextmanager
def _one_error(content: bytes) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise UnreadableImageError("empty file" if not content else "not an image") from None
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(_reason(error)) from error


def is_rotated(content: bytes) -> bool:
    """Whether an image carries an orientation tag that asks viewers to turn it, which timm does not."""
    if b"Exif" not in content[:_EXIF_WITHIN]:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:
        return False


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _load(image: Image.Image, shrink_to: int | None) -> Image.Image:
    if shrink_to:
        image.draft(None, (shrink_to, shrink_to))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below the size asked
    image.load()
    factor = min(image.size) // shrink_to if shrink_to else 1
    return image.reduce(factor) if factor >= 2 and image.mode in ("L", "RGB", "RGBA", "CMYK") else image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values // 257 if wide else values, 0, 255).astype(np.uint8))
    return image.convert(mode)


def _check_shape(image: Image.Image) -> None:
    short, long = sorted(image.size)
    if short < 1 or long > MAX_ASPECT * short:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels: sides differ more than {MAX_ASPECT}-fold")
    if short * long > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels: more than {MAX_PIXELS:,}")


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
