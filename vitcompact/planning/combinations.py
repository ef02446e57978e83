"""Everything that can be done to a site, with the loss increase expected of it, and which of it is worth timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitcompact.models.site_cost import SiteCost, Sizes
from vitcompact.operators import OPERATORS, Candidate
from vitcompact.planning.site_structure import Operators, alike
from vitcompact.plans.specs import LayerKind


@dataclass(frozen=True)
class Choice:
    """Operators of one site, the loss increase expected of each, and the sizes left (as `SiteCost` has them)."""

    operators: Operators
    losses: tuple[float, ...]
    sizes: Sizes

    @property
    def loss(self) -> float:
        """Total loss increase."""
        return sum(self.losses)


def combinations(kind: LayerKind, candidates: Mapping[str, Sequence[Candidate]], whole: Sizes) -> tuple[Choice, ...]:
    """Every combination of the candidates of a site's operators, each taken once or not at all; nothing comes first.

    Args:
        candidates: by operator.
        whole: sizes of the site as it is.
    """
    found = [Choice((), (), whole)]
    for name, operator in OPERATORS.items():
        if operator.kind != kind or name not in candidates:
            continue
        grown = []
        for choice in found:
            grown.append(choice)
            for candidate in candidates[name]:
                sizes = operator.resized(operator.size_of(candidate.spec), choice.sizes)
                if sizes is not None:
                    loss = operator.loss_beside(candidate.loss, choice.sizes, whole)
                    grown.append(Choice((*choice.operators, candidate.spec), (*choice.losses, loss), sizes))
        found = grown
    return tuple(found)


def most_saved(cost: SiteCost, unit: str, offered: Mapping[str, Sequence[int]]) -> float:
    """What the smallest of the sizes that each operator offers save together, or without some of them."""
    found = [cost.sizes]
    for name, sizes in offered.items():
        if sizes:
            smaller = (OPERATORS[name].resized(size, left) for size in {min(sizes), max(sizes)} for left in found)
            found += [left for left in list(smaller) if left is not None]
    return max(cost.saving(unit, **left) for left in found)


def structures_of(rows: Sequence[Sequence[Choice]]) -> list[Operators]:
    """What the choices of sites of one structure make of them, each once; first the structure as it is."""
    return list(dict.fromkeys(alike(choice.operators) for row in rows for choice in row))


def thinned(rows: Sequence[Sequence[Choice]], room: int) -> list[Operators]:
    """Structures on a grid of sizes with at most `room` points: every other value of the longest axis goes first.

    The original's own size of each axis stays (of ranks 0, none), so that equal widths stay possible.
    """
    every = [choice for row in rows for choice in row]
    columns = zip(*(choice.sizes.values() for choice in every), strict=True)
    axes = [sorted(set(column), key=lambda size: (size > 0, -size)) for column in columns]
    while True:
        left = [c for c in every if all(size in axis for size, axis in zip(c.sizes.values(), axes, strict=True))]
        found = structures_of([left])
        longest = max(axes, key=len)
        if len(found) <= room or len(longest) == 1:
            return [operators for operators in found if operators]
        longest[:] = longest[::2]


def contenders(rows: Sequence[Sequence[Choice]], times: Mapping[Operators, float], margin: float) -> list[Operators]:
    """Structures that for some site no less costly one is clearly faster than, by times relative to the whole site.

    Args:
        margin: how much slower than a less costly one a structure may look.
    """
    left: dict[Operators, None] = {}
    for row in rows:
        best = 1.0
        for choice in sorted(row, key=lambda choice: choice.loss):
            operators = alike(choice.operators)
            if operators in times and times[operators] < best * (1 + margin):
                left[operators] = None
                best = min(best, times[operators])
    return list(left)
