"""Images, numpy files and tars that are damaged, or claim what they do not hold."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from .mutate import Rng, damaged, of_the_system
from .pickle_files import MARK, SHELL, call

SUFFIXES = ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm", "tga", "ico", "jp2", "avif", "npy", "eps", "JPEG", "pcx")
POSTSCRIPT = (
    f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n(%pipe%{SHELL}) (w) file\n({MARK}) (w) file\nshowpage\n%%EOF\n"
).encode()
KINDS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
    "PPM",
    "TGA",
    "ICO",
    "JPEG2000",
    "AVIF",
    "EPS",
    "PCX",
    "MPO",
    "SGI",
)
MODES = ("RGB", "RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "I", "F", "LA", "YCbCr", "LAB")


def picture(rng: Rng, kind: str | None = None) -> bytes:
    """An honest small image."""
    values = np.frombuffer(rng.randbytes(36 * 40 * 3), np.uint8).reshape(36, 40, 3)
    image, buffer = Image.fromarray(values), io.BytesIO()
    if kind is not None:
        image.save(buffer, kind)
        return buffer.getvalue()
    try:
        options = {"icc_profile": rng.randbytes(200)} if rng.random() < 0.2 else {}
        kind = rng.choice(KINDS)
        many = {"save_all": True, "append_images": [image] * 3} if kind in ("GIF", "TIFF", "WEBP", "PNG") else {}
        image.convert(rng.choice(MODES)).save(buffer, kind, **options, **(many if rng.random() < 0.3 else {}))
    except (OSError, ValueError, KeyError, SystemError):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return buffer.getvalue()


def block(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, color: int, data: bytes, *more: bytes) -> bytes:
    """A PNG with this header, whatever the data."""
    header = block(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + block(b"IDAT", data) + block(b"IEND", b"")


def _zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    part = b"\0" * (1 << 20)
    return b"".join(
        [
            *(packer.compress(part) for _ in range(size >> 20)),
            packer.compress(b"\0" * (size % (1 << 20))),
            packer.flush(),
        ]
    )


def bomb(rng: Rng) -> bytes:
    """A small file that is a large image, or says so."""
    kind = rng.randrange(10)
    if kind == 0:
        return png(13_000, 13_000, 16, 0, _zeros(13_000 * 26_001))
    if kind == 1:
        side = rng.choice((3_000, 8_000, 10_900))
        return png(side, side, 8, 2, _zeros(side * (3 * side + 1)))
    if kind == 2:
        return png(rng.choice((1, 2**31 - 1, 60_000)), rng.choice((1, 0, 2**31 - 1, 60_000)), 8, 2, b"")
    if kind == 3:
        return png(40, 40, rng.choice((1, 3, 16, 255)), rng.choice((0, 1, 3, 4, 6, 9)), _zeros(5_000))
    if kind == 4:
        text = block(b"zTXt", b"k\0\0" + _zeros(200 << 20))
        return png(40, 40, 8, 0, zlib.compress(b"\0" * 41 * 40), text)
    if kind == 5:
        profile = block(b"iCCP", b"k\0\0" + _zeros(200 << 20))
        return png(40, 40, 8, 0, zlib.compress(b"\0" * 41 * 40), profile)
    if kind == 6:  # a GIF that claims the largest screen
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
            + b"\0" * 6
            + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;"
        )
    if kind == 7:
        return b"P6\n" + f"{rng.choice((10**9, 60_000, 10_900))} {rng.choice((10**9, 10_900))}\n255\n".encode()
    if kind == 8:
        return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0)
    side = rng.choice((9_000, 10_900))
    return png(side, side, 16, rng.choice((0, 2)), _zeros(side * (2 * side + 1)))


def array(rng: Rng) -> bytes:
    """A numpy file, mostly with a header that is wrong."""
    buffer = io.BytesIO()
    kind = rng.choice(("u1", "f4", "f8", "u2", "i8", "c16", "?", "S9"))
    shape = rng.choice(((5, 20, 20), (20, 20, 5), (5, 20), (5, 0, 20), (3, 20, 20), (5, 1, 9_000), ()))
    np.save(buffer, np.zeros(shape, kind))
    if rng.random() < 0.3:
        return damaged(buffer.getvalue(), rng)
    told = rng.choice(
        ("'|u1'", "'<f4'", "'|O'", "'<U9'", "[('a', '<f4')]", "'>f8'", "'V999999999'", "__import__('os')")
    )
    sizes = rng.choice(
        ("(5, 20, 20)", "(5, 100000, 100000)", "(5, -1, 20)", "(2**70,)", "(5, 20, 20.5)", "()", "9" * 9_000)
    )
    text = f"{{'descr': {told}, 'fortran_order': {rng.choice(('False', 'True', '1'))}, 'shape': {sizes}, }}\n"
    data = call(rng) + b"." if "O" in told else b"\0" * 2_000
    return (
        b"\x93NUMPY"
        + rng.choice((b"\x01\x00", b"\x02\x00", b"\x09\x00"))
        + struct.pack("<H", len(text))
        + text.encode()
        + data
    )


def hostile_image(rng: Rng) -> bytes:
    """One file for a folder of images."""
    kind = rng.randrange(40)
    if kind == 0:
        return bomb(rng)
    if kind < 4:
        return rng.choice(
            (POSTSCRIPT, b"", b"\xff\xd8\xff", b"%PDF-1.4\n", b"<svg/>", b"#!/bin/sh\n", call(rng) + b".")
        )
    if kind < 8:
        return array(rng)
    return damaged(picture(rng), rng) if kind < 34 else picture(rng)


def hostile_folder(root: Path, rng: Rng) -> None:
    """A folder of images, some of them hostile, in odd places."""
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.png").write_bytes(picture(rng, "PNG"))
    for number in range(rng.choice((1, 1, 2, 4))):
        path = root / rng.choice(("ant", "bee")) / f"x{number}.{rng.choice(SUFFIXES)}"
        if not of_the_system(path, rng):
            path.write_bytes(hostile_image(rng))
    kind = rng.randrange(30)
    if kind == 0:
        (root / "ant" / "loop").symlink_to(root)
    elif kind == 1:
        os.mkfifo(root / "bee" / "pipe.jpg")
    elif kind == 2:
        (root / "\x1b[31mcat").mkdir()
        (root / "\x1b[31mcat" / "\x1b]0;x\x07.png").write_bytes(picture(rng, "PNG"))
    elif kind == 3:
        (root / os.fsdecode(b"\xff\xfe")).mkdir()
        (root / os.fsdecode(b"\xff\xfe") / "1.png").write_bytes(picture(rng, "PNG"))
    elif kind == 4:
        for name in ("ant", "bee"):
            (root / name / "again").symlink_to(root / "ant" / "again2")
    elif kind == 5:
        (root / "_tarinfos.pickle").write_bytes(call(rng) + b".")
    elif kind == 6:
        (root / "ant" / "locked.png").symlink_to("/dev/zero")


def hostile_arrays(root: Path, rng: Rng) -> None:
    """A folder of numpy files."""
    (root / "ant").mkdir(parents=True)
    np.save(root / "ant" / "0.npy", np.zeros((5, 20, 20), np.uint8))
    for number in range(rng.choice((1, 2))):
        path = root / "ant" / f"x{number}.{rng.choice(('npy', 'npy', 'npy', 'tif'))}"
        if not of_the_system(path, rng):
            path.write_bytes(array(rng) if rng.random() < 0.9 else hostile_image(rng))


def hostile_tar(path: Path, rng: Rng) -> None:
    """A tar of class folders, some of whose entries lie."""
    if of_the_system(path, rng):
        return
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode=rng.choice(("w", "w", "w", "w:gz")), format=rng.choice((0, 1, 2))
    ) as archive:
        for number in range(3):
            _add(archive, f"ant/{number}.png", picture(rng, "PNG"))
            _add(archive, f"bee/{number}.png", picture(rng, "PNG"))
        for _ in range(rng.choice((0, 1, 2))):
            _add_odd(archive, rng)
    content = buffer.getvalue()
    if rng.random() < 0.5:
        content = _lying_header(content, rng) if rng.random() < 0.6 else damaged(content, rng)
    path.write_bytes(content)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _add_odd(archive: tarfile.TarFile, rng: Rng) -> None:
    names = (
        "ant/x.png",
        "../../x.png",
        "/etc/x.png",
        "ant/\x1b[31m.png",
        "x" * 90 + ".png",
        "ant",
        "_tarinfos.pickle",
        "a.tar",
    )
    entry = tarfile.TarInfo(rng.choice(names))
    kind = rng.randrange(5)
    content = hostile_image(rng)
    if kind == 0:
        entry.type = rng.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"Z"))
        entry.linkname = rng.choice(("ant/0.png", "/dev/zero", "/etc/passwd", "ant/x.png", "../../../etc/passwd"))
        content = b""
    elif kind == 1:
        entry.pax_headers = {
            rng.choice(
                ("GNU.sparse.size", "GNU.sparse.realsize", "size", "path", "GNU.sparse.map", "mtime")
            ): rng.choice(("4611686018427387904", "-1", "x", "0,1,4611686018427387904,1", "a" * 100_000))
        }
    entry.size = len(content)
    try:
        archive.addfile(entry, io.BytesIO(content))
    except (ValueError, OverflowError):
        return


def _lying_header(content: bytes, rng: Rng) -> bytes:
    """A number of one header replaced, and its sum put right."""
    data = bytearray(content)
    heads = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return damaged(content, rng)
    at = rng.choice(heads)
    size = rng.choice(
        (b"\x80" + (2**62).to_bytes(11, "big"), b"\xff" * 12, b"77777777777\0", b"x" * 12, b"-0000000001\0")
    )
    field = rng.choice((124, 124, 124, 100, 136, 156, 345))
    if field == 156:
        data[at + field] = rng.choice(b"0123456SLKgxX\0Z")
    else:
        data[at + field : at + field + len(size)] = size
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
    return bytes(data)
