"""Which files of a folder are images that are read, and what is left out."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions

from vitcompact.data.decode import readable_formats

ARRAYS = (".npy",)
"""numpy files, which are looked for where there are no images: pictures of more channels than image formats hold."""
_OTHER_IMAGES = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf"}
    | {".exr", ".hdr", ".dcm", ".nii", ".mat", ".npz"}
)
_lock = threading.Lock()


@cache
def image_suffixes() -> tuple[str, ...]:
    """Endings of the files that this build of Pillow reads, of the kinds that are opened at all."""
    formats = readable_formats()
    return tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats))


@contextmanager
def timm_looks_for(suffixes: tuple[str, ...]) -> Iterator[None]:
    """Let timm's readers of folders and tars, which know PNG and JPEG only, look for these files meanwhile."""
    with _lock:
        before = get_img_extensions()
        set_img_extensions(suffixes)
        try:
            yield
        finally:
            set_img_extensions(before)


def left_out(root: Path, suffixes: tuple[str, ...]) -> str:
    """How many files under `root` look like images but are of kinds that are not read, by ending; empty for none."""
    looking = (_OTHER_IMAGES | set(Image.registered_extensions())) - set(suffixes)
    found: Counter[str] = Counter()
    for _, _, names in os.walk(root, followlinks=True):
        endings = (os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
        found.update(ending for ending in endings if ending in looking)
    counts = ", ".join(f"{count} {ending}" for ending, count in sorted(found.items()))
    return f"{found.total()} files of kinds that are not read ({counts})" if found else ""
