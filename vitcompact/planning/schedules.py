"""Where in the trunk so many pairs of tokens merge: shapes of schedules, of which a budget takes what loses least."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vitcompact.operators.merge import spread

Shape = Callable[[float], float]
"""How much a block merges, relative to others, by its place in the trunk: 0 is the first block, 1 the last."""

EVEN = "even"
"""What merging without a plan does."""
SHAPES: Mapping[str, Shape] = {
    EVEN: lambda place: 1.0,
    "later": lambda place: 0.5 + place,
    "earlier": lambda place: 1.5 - place,
}
"""What the others are good for: docs/results-features.md."""


def shaped(pairs: int, depth: int, shape: str = EVEN) -> tuple[int, ...]:
    """So many pairs of tokens shared out among the blocks; the parts of a pair add up from block to block."""
    if shape == EVEN:
        return spread(pairs, depth)
    weights = [SHAPES[shape](block / max(depth - 1, 1)) for block in range(depth)]
    whole, given, schedule, sum_ = sum(weights), 0, [], 0.0
    for weight in weights:
        sum_ += weight
        upto = round(pairs * sum_ / whole)
        schedule.append(upto - given)
        given = upto
    return tuple(schedule)
