"""Which heads keep their map, and in which order value heads are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadLayout:
    """How value heads are stored: each map's own value head, then those of the heads hallucinated from it.

    Attributes:
        maps: original indices of the heads that compute a softmax map, most children first.
        children: per map, the original indices of the heads hallucinated from it.
    """

    maps: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]

    @property
    def heads(self) -> tuple[int, ...]:
        """Original index of every value head in stored order."""
        return tuple(head for own, rest in zip(self.maps, self.children, strict=True) for head in (own, *rest))

    @property
    def hallucinated(self) -> tuple[int, ...]:
        """Positions (in stored order) of the hallucinated value heads."""
        flags = [head in self.maps for head in self.heads]
        return tuple(i for i, kept in enumerate(flags) if not kept)

    @property
    def own(self) -> list[int]:
        """Positions (in stored order) of the value heads that have a map of their own."""
        return [i for i, head in enumerate(self.heads) if head in self.maps]

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Runs of `(number of maps, value heads per map)`: one attention call each."""
        runs: list[list[int]] = []
        for rest in self.children:
            if runs and runs[-1][1] == 1 + len(rest):
                runs[-1][0] += 1
            else:
                runs.append([1, 1 + len(rest)])
        return tuple((count, width) for count, width in runs)

    def of_maps(self, values: Tensor) -> Tensor:
        """The kept maps' part of what a model hands to all of a layer's heads, `(..., heads or 1, rows, columns)`.

        A tensor without an axis of heads, or with one entry for all of them, stays as it is.
        """
        heads = len(self.heads)
        if values.dim() < 3 or values.shape[-3] != heads or self.maps == tuple(range(heads)):
            return values
        return torch.stack([values[..., head, :, :] for head in self.maps], dim=-3)
