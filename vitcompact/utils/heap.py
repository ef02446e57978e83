"""Memory that the C library holds on to."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Hand freed memory back to the system where the C library keeps it (glibc); elsewhere nothing happens.

    glibc stops returning blocks of up to 32 MB once one of that size was freed (mallopt(3), M_MMAP_THRESHOLD). Walking
    a model makes and frees many of them, of ever new sizes: after a dozen blocks the heap holds more gaps than tensors.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
