"""Keys and values that several heads share: multi-query (arXiv 1911.02150) and grouped-query attention (2305.13245)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompact.layers.layout import HeadLayout


@dataclass(frozen=True)
class SharedHeads:
    """Which key and value heads there are, fewer than heads that ask; runs of heads read the same one.

    Attributes:
        values: value heads, which are all kept.
        keys: those key heads that a kept map reads.
        key_of_map: the place in `keys` of each kept map's.
        value_of_head: the value head of each stored head.
    """

    values: int
    keys: tuple[int, ...]
    key_of_map: tuple[int, ...]
    value_of_head: tuple[int, ...]

    @classmethod
    def of(cls, layout: HeadLayout, key_heads: int, value_heads: int) -> SharedHeads:
        """Those of a layer with so many key and value heads."""
        heads = len(layout.heads)
        key_of = [head // (heads // key_heads) for head in layout.maps]
        keys = tuple(dict.fromkeys(key_of) if key_heads == heads else sorted(set(key_of)))
        values = tuple(head // (heads // value_heads) for head in layout.heads)
        return cls(value_heads, keys, tuple(keys.index(key) for key in key_of), values)

    def keys_of_maps(self, k: Tensor) -> Tensor:
        """`(batch, keys, tokens, channels)` to `(batch, maps, tokens, channels)`."""
        if self.key_of_map == tuple(range(len(self.keys))):
            return k
        if len(self.keys) == 1:
            return k.expand(-1, len(self.key_of_map), -1, -1)
        return torch.stack([k[:, place] for place in self.key_of_map], dim=1)

    def values_of_heads(self, v: Tensor) -> Tensor:
        """`(batch, tokens, values * v_dim)` to `(batch, tokens, heads * v_dim)`."""
        each = v.chunk(self.values, dim=-1)
        return torch.cat([each[place] for place in self.value_of_head], dim=-1)
