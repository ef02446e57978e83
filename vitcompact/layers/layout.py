"""Which heads keep their map, and in which order value heads are stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.fx
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
    def map_of_head(self) -> list[int]:
        """For each head in the original order, the position of the map that it uses."""
        families = zip(self.maps, self.children, strict=True)
        used = {head: i for i, (own, rest) in enumerate(families) for head in (own, *rest)}
        return [used[head] for head in sorted(used)]

    @cached_property
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
        return values if self.maps == tuple(range(heads)) else chosen_heads(values, self.maps, heads)


def chosen_heads(values: Tensor, maps: tuple[int, ...], heads: int) -> Tensor:
    """Some of `heads` entries along the third axis from the end, all where there is no such axis."""
    if values.dim() < 3 or values.shape[-3] != heads:
        return values
    return torch.stack([values[..., head, :, :] for head in maps], dim=-3)


torch.fx.wrap("chosen_heads")  # whether there is such an axis is not known while FX traces
