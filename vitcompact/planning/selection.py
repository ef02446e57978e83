"""Which layers a request for a share of heads and of ranks covers, before any data is seen."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass

from vitcompact.errors import UsageError
from vitcompact.operators.steps import MULTIPLE
from vitcompact.options.selection import Only
from vitcompact.options.surgery import TERMS
from vitcompact.plans.specs import LayerKind


def patterns(protect: Iterable[str]) -> tuple[str, ...]:
    """Patterns as a tuple, of one text too."""
    return (protect,) if isinstance(protect, str) else tuple(protect)


@dataclass(frozen=True)
class Selection:
    """How much of what to compact.

    Attributes:
        ratio: share of the heads to hallucinate, in (0, 1).
        rank_ratio: rank of the FFN's output matrix over its number of outputs, in (0, 1).
        only: `heads` or `ffn` for one of the two, None for both.
        protect: glob patterns of module paths that are left alone.
        terms: paths of hallucinated maps besides the parent's map, out of `TERMS`.
        filter_rank: rank of the 3x3 map filter, 0 to 3.
        branches: silent branches of each FFN factor in the training form.
        size_multiple: ranks and widths are multiples of it, itself one of 8.
    """

    ratio: float = 0.5
    rank_ratio: float = 0.5
    only: Only | None = None
    protect: tuple[str, ...] = ()
    terms: tuple[str, ...] = ("identity",)
    filter_rank: int = 0
    branches: int = 0
    size_multiple: int = MULTIPLE

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("rank_ratio", self.rank_ratio)):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 < value < 1):
                raise UsageError(f"`{name}` must be between 0 and 1 (both exclusive), got {value}")
        if self.only not in (None, "heads", "ffn"):
            raise UsageError(f"`only` takes 'heads' or 'ffn', got {self.only!r}")
        unknown = [term for term in self.terms if term not in TERMS]
        if unknown:
            raise UsageError(f"`terms`: unknown path {unknown[0]!r} of a hallucinated map; known: {', '.join(TERMS)}")
        if not 0 <= self.filter_rank <= 3 or self.branches < 0:
            raise UsageError(
                f"`filter_rank` must be 0 to 3 and `branches` at least 0, got {self.filter_rank}, {self.branches}"
            )

        if self.size_multiple < MULTIPLE or self.size_multiple % MULTIPLE:
            raise UsageError(f"`size_multiple` takes a multiple of {MULTIPLE}, got {self.size_multiple}")

    def covers(self, name: str, kind: LayerKind) -> bool:
        """Whether the layer at module path `name` is to be compacted."""
        return self.only in (None, "heads" if kind == "attention" else "ffn") and self.protected(name) is None

    def protected(self, name: str) -> str | None:
        """The pattern that protects a layer (itself or its block), or None."""
        parts = name.split(".")
        paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return next((p for p in self.protect if any(fnmatch.fnmatchcase(path, p) for path in paths)), None)
