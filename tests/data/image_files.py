"""Small image files and folders, good and bad, made on the spot."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 20, width: int = 24) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims billions of pixels."""

    def block(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")


def corrupt_files() -> dict[str, bytes]:
    jpeg = encoded(picture(99, 64, 64), "JPEG")
    return {
        "bomb.png": bomb(),
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": encoded(picture(98))[:200],
        "ribbon.png": encoded(picture(97, 2, 400)),
    }


def fill(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 6) -> Path:
    """`each` pictures in every class folder; an empty class name puts them into `root` itself."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(encoded(picture(100 * number + i)))
    return root


def as_tar(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for entry in sorted(root.iterdir()):
            archive.add(entry, entry.name)
    return path
