"""Everything that can be done to a site, with the harm expected of it, and which of it is worth timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitcompact.operators.loss_curves import AttentionCurve, FfnCurve
from vitcompact.plan.specs import FactorizeSpec, NeuronsSpec, OperatorSpec, ThinQkSpec, ThinVoSpec
from vitcompact.planning.site_cost import AttentionCost, FfnCost
from vitcompact.planning.site_structure import Operators, alike


@dataclass(frozen=True)
class Choice:
    """Operators of one site, the harm expected of each, and the sizes that they leave.

    `sizes` are the arguments of the site's linear cost: maps and widths of queries and values, or hidden units and rank
    (0: not factorized).
    """

    operators: Operators
    harms: tuple[float, ...]
    sizes: tuple[int, ...]

    @property
    def harm(self) -> float:
        """Total harm."""
        return sum(self.harms)


def attention_choices(curve: AttentionCurve, cost: AttentionCost) -> tuple[Choice, ...]:
    """Every combination of hallucinated heads, width of queries and keys, and width of values."""
    maps: list[tuple[OperatorSpec | None, float, int]] = [(None, 0.0, cost.num_heads)]
    maps += [(spec, harm, len(spec.kept)) for spec, harm in curve.hallucinate]
    choices = []
    for spec, harm, num_maps in maps:
        for qk, qk_harm in {cost.qk_dim: 0.0, **curve.qk}.items():
            for v, v_harm in {cost.v_dim: 0.0, **curve.v}.items():
                parts: list[tuple[OperatorSpec | None, float]] = [
                    (spec, harm),
                    (ThinQkSpec(qk) if qk < cost.qk_dim else None, qk_harm * num_maps / cost.num_heads),
                    (ThinVoSpec(v) if v < cost.v_dim else None, v_harm),
                ]
                choices.append(_choice(parts, (num_maps, qk, v)))
    return tuple(choices)


def ffn_choices(curve: FfnCurve, cost: FfnCost, branches: int) -> tuple[Choice, ...]:
    """Every number of hidden units with every rank of which the two factors are smaller than the matrix."""
    choices = []
    for hidden, harm in {cost.hidden: 0.0, **curve.hidden}.items():
        for rank, rank_harm in {0: 0.0, **curve.rank}.items():
            if rank * (hidden + cost.outputs) >= hidden * cost.outputs:
                continue
            parts: list[tuple[OperatorSpec | None, float]] = [
                (NeuronsSpec(hidden) if hidden < cost.hidden else None, harm),
                (FactorizeSpec(rank, branches) if rank else None, rank_harm),
            ]
            choices.append(_choice(parts, (hidden, rank)))
    return tuple(choices)


def structures_of(rows: Sequence[Sequence[Choice]]) -> list[Operators]:
    """What the choices of sites of one structure make of them, each once; first the structure as it is."""
    return list(dict.fromkeys(alike(choice.operators) for row in rows for choice in row))


def thinned(rows: Sequence[Sequence[Choice]], room: int) -> list[Operators]:
    """Structures on a grid of sizes with at most `room` points: every other value of the longest axis goes first.

    The original's own size of each axis stays (of ranks 0, none), so that equal widths stay possible.
    """
    every = [choice for row in rows for choice in row]
    columns = zip(*(choice.sizes for choice in every), strict=True)
    axes = [sorted(set(column), key=lambda size: (size > 0, -size)) for column in columns]
    while True:
        left = [c for c in every if all(size in axis for size, axis in zip(c.sizes, axes, strict=True))]
        found = structures_of([left])
        longest = max(axes, key=len)
        if len(found) <= room or len(longest) == 1:
            return [operators for operators in found if operators]
        longest[:] = longest[::2]


def contenders(rows: Sequence[Sequence[Choice]], times: Mapping[Operators, float], margin: float) -> list[Operators]:
    """Structures that for some site no less harmful one is clearly faster than, by times relative to the whole site.

    Args:
        margin: how much slower than a less harmful one a structure may look.
    """
    left: dict[Operators, None] = {}
    for row in rows:
        best = 1.0
        for choice in sorted(row, key=lambda choice: choice.harm):
            operators = alike(choice.operators)
            if operators in times and times[operators] < best * (1 + margin):
                left[operators] = None
                best = min(best, times[operators])
    return list(left)


def _choice(parts: Sequence[tuple[OperatorSpec | None, float]], sizes: tuple[int, ...]) -> Choice:
    used = [(spec, harm) for spec, harm in parts if spec is not None]
    return Choice(tuple(spec for spec, _ in used), tuple(harm for _, harm in used), sizes)
