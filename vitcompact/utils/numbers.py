"""Figures as people read them: in tables, pages and model cards alike."""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "n/a"
"""What stands for a figure that was not measured."""


def big(value: float, like: float | None = None) -> str:
    """A count with its unit: `21.6 M`, `4.60 G`; the unit is that of `like` where given."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value if like is None else like) >= limit:
            scaled = value / limit
            return f"{scaled:.2f}{unit}" if scaled < 10 else f"{scaled:.1f}{unit}"
    return f"{value:g}"


def size(count: float) -> str:
    """Bytes with their unit, in steps of 1000: `43.5 MB`."""
    return f"{big(count)}B" if count >= 1e3 else f"{count:g} B"


def change(before: float, after: float) -> str:
    """A relative change in percent."""
    return f"{100 * (after - before) / before:+.1f} %" if before else UNKNOWN


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or `UNKNOWN` where it was not measured."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A figure that is in percent already."""
    return UNKNOWN if value is None else f"{value:.2f} %"


def interval(ends: Sequence[float] | None, digits: int = 2, unit: str = "", sign: bool = False) -> str:
    """A 95 % interval: `-0.41 to +0.18 points`; nothing where there is none."""
    if ends is None:
        return ""
    low, high = (f"{end:{'+' if sign else ''}.{digits}f}" for end in ends)
    return f"{low} to {high}{unit}"


def tiny(value: float | None) -> str:
    """A difference: `3.2e-06`."""
    return UNKNOWN if value is None else f"{value:.1e}" if value else "0"


def duration(seconds: float) -> str:
    """Such as `42 s`, `3 min 20 s` or `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
