"""Handing freed memory back: where the C library can, and nothing elsewhere."""

from __future__ import annotations

import ctypes
import sys

import pytest

from vitcompact.utils.heap import trim_heap


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_trims_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Library:
        malloc_trim = staticmethod(asked.append)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    trim_heap()
    assert asked == [0]


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_does_nothing_elsewhere(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """musl has no such function; other systems are not asked for it."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object() if platform == "linux" else pytest.fail("asked"))
    trim_heap()
