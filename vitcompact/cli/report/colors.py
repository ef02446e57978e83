"""One sequential colour scale and one accent, for both kinds of report."""

from __future__ import annotations

SCALE = ("#f7fbff", "#d6e6f4", "#abcfe6", "#6fb0d7", "#3787c0", "#105ba4", "#08306b")
"""Light to dark blue: 0 to 1."""
ACCENT = "#d9480f"
GREY = "#868e96"


def shade(value: float) -> str:
    """The colour of a value in [0, 1] (others are clipped), as `#rrggbb`."""
    position = min(max(value, 0.0), 1.0) * (len(SCALE) - 1)
    index = min(int(position), len(SCALE) - 2)
    low, high = _rgb(SCALE[index]), _rgb(SCALE[index + 1])
    mixed = (round(a + (b - a) * (position - index)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def is_dark(value: float) -> bool:
    """Whether text on `shade(value)` should be white."""
    return value > 0.5


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
