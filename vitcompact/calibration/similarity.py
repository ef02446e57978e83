"""How alike the attention maps of a layer's heads are."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcompact.layers.parts import AttentionParts
from vitcompact.utils.processes import Processes


class MapSimilarity:
    """Streams the likeness of every pair of heads' maps, averaged over images and queries.

    `cosine`: mean cosine of the two heads' rows. `jensen_shannon`: 1 minus the mean Jensen-Shannon divergence of the
    two rows in bits, which lies in [0, 1]; 1 means equal.
    """

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads
        self.rows = 0
        self._cosine = torch.zeros(num_heads, num_heads, dtype=torch.float64)
        self._divergence = torch.zeros(num_heads, num_heads, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Add `maps (batch, heads, queries, keys)`, rows summing to 1."""
        unit = maps / maps.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        self._cosine += torch.einsum("bhqk,bpqk->hp", unit, unit).double().cpu()
        entropy = _entropy(maps).sum(dim=(0, 2)).double().cpu()
        for head in range(self.num_heads):
            middle = _entropy((maps[:, head : head + 1] + maps) / 2).sum(dim=(0, 2)).double().cpu()
            self._divergence[head] += middle - (entropy[head] + entropy) / 2
        self.rows += maps.shape[0] * maps.shape[2]

    def total_over(self, processes: Processes) -> None:
        """See `Sums`."""
        processes.total(self._cosine, self._divergence)
        self.rows = round(processes.sums(self.rows)[0])

    @property
    def cosine(self) -> Tensor:
        """`(heads, heads)`, symmetric, ones on the diagonal."""
        return self._cosine / self.rows

    @property
    def jensen_shannon(self) -> Tensor:
        """`(heads, heads)`, symmetric, ones on the diagonal."""
        return 1.0 - self._divergence / self.rows


def weight_similarity(parts: AttentionParts) -> Tensor:
    """Cosine between the heads' bilinear forms `W_q^T W_k` `(heads, heads)`: what can be said without images.

    Uses `<W_q^T W_k, W_q'^T W_k'> = trace((W_q' W_q^T) (W_k W_k'^T))`, so no `(dim, dim)` matrix is built.
    """
    query = parts.query.detach().double().unflatten(0, (parts.num_heads, -1))
    key = parts.key_of_each_head.detach().double()
    left = torch.einsum("hid,pjd->hpij", query, query)
    right = torch.einsum("hid,pjd->hpij", key, key)
    inner = (left * right).sum(dim=(2, 3))
    norm = inner.diagonal().clamp_min(1e-300).sqrt()
    return inner / torch.outer(norm, norm)


def _entropy(p: Tensor) -> Tensor:
    """Entropy of the last axis in bits."""
    return -(p * p.clamp_min(1e-30).log2()).sum(dim=-1)
