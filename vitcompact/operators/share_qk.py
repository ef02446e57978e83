"""One map for several heads: queries and keys of a kept head solved for its children as well.

The children of a kept head take its map. Instead of the kept head's own logits the group can be given a weighted mean
of the logits of all its heads: a sum of products `Q_h K_h^T`, which is one product of wider queries and keys, truncated
to the width of one head as in `thin`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitcompact.calibration.moments import QkMoments
from vitcompact.layers.attention import CompactAttention
from vitcompact.utils.processes import Processes


class GroupMoments:
    """Streams what `solve` needs of the queries and keys of all heads of a layer.

    Args:
        core: the layer with its hallucinated heads, whose layout says which heads share a map.
        weight: of the kept head's logits in the mean, the children share the rest alike; in (0, 1].
    """

    def __init__(self, core: CompactAttention, weight: float, name: str = "") -> None:
        self.layout, self.weight = core.layout, weight
        self.moments = {width: QkMoments(name) for width in {1 + len(rest) for rest in self.layout.children} - {1}}

    def add(self, q: Tensor, k: Tensor) -> None:
        """Add queries and keys of every original head, `(batch, heads, tokens, qk_dim)`."""
        for width, maps in self._runs():
            heads = torch.tensor([self._heads(i) for i in maps], device=q.device)
            sides = [t[:, heads].transpose(2, 3).flatten(3) for t in (q * self._scales(q, heads), k)]
            self.moments[width].add(*sides)

    def total_over(self, processes: Processes) -> None:
        """See `calibration.sums.Sums`."""
        for moments in self.moments.values():
            moments.total_over(processes)

    @torch.no_grad()
    def solve(self, core: CompactAttention, whole: CompactAttention) -> None:
        """Give `core` the queries and keys of the groups; `whole` is the layer with all heads in their order."""
        size = core.qk_dim
        for width, maps in self._runs():
            query, key, _ = self.moments[width].subspaces()
            for place, i in enumerate(maps):
                heads = self._heads(i)
                shares = [self.weight, *[(1 - self.weight) / (width - 1)] * (width - 1)]
                for part, basis, scales in (("q", query, shares), ("k", key, [1.0] * width)):
                    for old, new in zip(whole.rows(part), core.rows(part), strict=True):
                        if old is None or new is None:
                            continue
                        stacked = torch.cat(
                            [s * old[h * size : (h + 1) * size].double() for h, s in zip(heads, scales, strict=True)]
                        )
                        new[i * size : (i + 1) * size] = (basis[place, :, :size].T @ stacked).to(new.dtype)

    def _runs(self) -> Iterator[tuple[int, list[int]]]:
        """Heads per map and the maps (by place) that have as many, for maps with children."""
        for width in self.moments:
            yield width, [i for i, rest in enumerate(self.layout.children) if 1 + len(rest) == width]

    def _heads(self, place: int) -> list[int]:
        return [self.layout.maps[place], *self.layout.children[place]]

    def _scales(self, q: Tensor, heads: Tensor) -> Tensor:
        """Weight of each original head's queries `(heads, 1, 1)`; heads outside a group are not read."""
        scales = q.new_ones(q.shape[1], 1, 1)
        scales[heads[:, 0]] = self.weight
        scales[heads[:, 1:].flatten()] = (1 - self.weight) / (heads.shape[1] - 1)
        return scales
