"""Sizes worth a look of a dimension of an FFN."""

from __future__ import annotations

MULTIPLE = 8
"""Sizes are multiples of this, which CPU kernels like."""
STEPS = 24
"""Sizes considered, about."""


def size_steps(full: int) -> list[int]:
    """Sizes below `full`, rising in equal steps."""
    step = max(MULTIPLE, full // STEPS // MULTIPLE * MULTIPLE)
    return list(range(step, full, step))
