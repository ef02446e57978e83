"""Who keeps its map and who is whose parent: a shortlist by copy cost."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from vitcompact.errors import DataError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.backends import maps
from vitcompact.layers.calls import AttentionInputs
from vitcompact.layers.masks import causal_alone, logit_mask
from vitcompact.utils.processes import Processes

EXHAUSTIVE_LIMIT = 2000
"""Kept sets are all tried up to this many, else improved by swaps."""

Parents = dict[int, int]
"""Hallucinated head -> the kept head whose map it takes."""


def num_hallucinated(ratio: float, num_heads: int) -> int:
    """Heads that `ratio` hallucinates: `floor(ratio * H)`, at least one head kept."""
    return min(math.floor(ratio * num_heads + 1e-9), num_heads - 1)


class CopyCosts:
    """Streams `|(A_p - A_h) V_h W_o^h|^2`, the output error of giving head `h` the map of head `p`."""

    def __init__(self, num_heads: int, v_dim: int) -> None:
        self.gram = torch.zeros(num_heads, num_heads, v_dim, v_dim, dtype=torch.float64)

    def add(self, maps: Tensor, values: Tensor) -> None:
        """Add a batch: `maps (batch, heads, queries, keys)`, `values (batch, heads, keys, v_dim)`."""
        for parent in range(maps.shape[1]):
            change = ((maps[:, parent : parent + 1] - maps) @ values).transpose(0, 1).flatten(1, 2).double()
            self.gram[:, parent] += (change.transpose(1, 2) @ change).cpu()

    def total_over(self, processes: Processes) -> None:
        """See `calibration.sums.Sums`."""
        processes.total(self.gram)

    def matrix(self, proj: Tensor) -> Tensor:
        """Costs `(heads, parents)` for `proj (outputs, heads * v_dim)` with a LayerScale absorbed, float64."""
        blocks = proj.cpu().double().unflatten(1, (self.gram.shape[0], -1)).transpose(0, 1)
        return torch.einsum("hoi,hpij,hoj->hp", blocks, self.gram, blocks)


def attention_maps(core: CompactAttention, q: Tensor, k: Tensor, inputs: AttentionInputs) -> Tensor:
    """The maps `(batch, maps, queries, keys)` of a core, for statistics over one batch only."""
    mask = logit_mask(inputs, q.dtype)
    return maps(q, k, scale=core.scale, mask=mask, causal=causal_alone(inputs))


def shortlist(costs: Tensor, count: int, size: int) -> list[Parents]:
    """The `size` cheapest ways to hallucinate `count` heads, cheapest first.

    Args:
        costs: `(heads, parents)`; the diagonal is not read.

    No head gets more than `ceil(hallucinated / kept)` children, which keeps attention calls equally wide.

    Raises:
        DataError: costs that are not finite, which no order could be made of.
    """
    if not torch.isfinite(costs).all():
        raise DataError("the costs of copying attention maps are not finite (NaN or infinity)")
    heads = range(costs.shape[0])
    table = costs.tolist()
    if math.comb(len(heads), count) <= EXHAUSTIVE_LIMIT:
        candidates = [set(chosen) for chosen in itertools.combinations(heads, count)]
    else:
        candidates = _swap_search(table, count)
    scored = sorted((_match(table, hallucinated) for hallucinated in candidates), key=lambda item: item[0])
    return [parents for _, parents in scored[:size]]


def _swap_search(table: list[list[float]], count: int) -> list[set[int]]:
    """Improve a greedy choice by swapping one hallucinated with one kept head until nothing helps."""
    heads = set(range(len(table)))
    cheapest = sorted(heads, key=lambda h: min(table[h][p] for p in heads if p != h))
    best = set(cheapest[:count])
    best_cost = _match(table, best)[0]
    seen = {frozenset(best)}
    improved = True
    while improved:
        improved = False
        for out, into in itertools.product(sorted(best), sorted(heads - best)):
            trial = best - {out} | {into}
            if frozenset(trial) in seen:
                continue
            seen.add(frozenset(trial))
            cost = _match(table, trial)[0]
            if cost < best_cost:
                best, best_cost, improved = trial, cost, True
                break
    return [set(chosen) for chosen in seen]


def _match(table: list[list[float]], hallucinated: set[int]) -> tuple[float, Parents]:
    """The cheapest parents for a set of hallucinated heads: an assignment problem."""
    kept = [head for head in range(len(table)) if head not in hallucinated]
    children = sorted(hallucinated)
    places = kept * math.ceil(len(children) / len(kept))
    chosen = assignment([[table[child][parent] for parent in places] for child in children])
    parents = {child: places[column] for child, column in zip(children, chosen, strict=True)}
    return sum(table[child][parent] for child, parent in parents.items()), parents


def assignment(costs: list[list[float]]) -> list[int]:
    """Column of every row in the cheapest one-to-one assignment (rows <= columns), by shortest augmenting paths."""
    rows, columns = len(costs), len(costs[0]) if costs else 0
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner, previous = [0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack, used = [math.inf] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            used[column] = True
            current, step, following = owner[column], math.inf, 0
            for j in range(1, columns + 1):
                if used[j]:
                    continue
                reduced = costs[current - 1][j - 1] - row_price[current] - column_price[j]
                if reduced < slack[j]:
                    slack[j], previous[j] = reduced, column
                if slack[j] < step:
                    step, following = slack[j], j
            for j in range(columns + 1):
                if used[j]:
                    row_price[owner[j]] += step
                    column_price[j] -= step
                else:
                    slack[j] -= step
            column = following
        while column:
            owner[column], column = owner[previous[column]], previous[column]
    chosen = [0] * rows
    for j in range(1, columns + 1):
        if owner[j]:
            chosen[owner[j] - 1] = j - 1
    return chosen
