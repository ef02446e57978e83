"""Differential attention: each output is the difference of two heads' (arXiv 2410.05258), normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairedHeads(nn.Module):
    """Weighted sums of neighbouring heads' outputs, which bring the pairs into their original order, and what follows.

    Args:
        weight: of each head in its sum, `(heads,)`.
        v_dim: channels of a head.
        norm: of each pair's channels.
        after: of all channels.
    """

    order: Tensor

    def __init__(self, weight: Tensor, v_dim: int, norm: nn.Module, factor: float, after: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.v_dim, self.factor = v_dim, factor
        self.norm, self.after = norm, after
        self.out_features = len(weight) // 2 * v_dim
        self.register_buffer("order", torch.arange(len(weight)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, tokens, heads * v_dim)` in stored order to `(batch, tokens, pairs * v_dim)`."""
        by_head = x.unflatten(-1, (-1, self.v_dim)) * self.weight[:, None].to(x.dtype)
        pairs = by_head[..., self.order, :].unflatten(-2, (-1, 2)).sum(dim=-2)
        out: Tensor = self.after((self.norm(pairs) * self.factor).flatten(-2))
        return out

    def keep_heads(self, heads: list[int]) -> None:
        """Take the heads in the order in which they are stored; all are kept."""
        self.weight = nn.Parameter(self.weight.detach()[heads].clone(), self.weight.requires_grad)
        self.order = torch.tensor([heads.index(head) for head in range(len(heads))], device=self.order.device)

    def of_heads(self, weight: Tensor) -> Tensor:
        """A matrix over the pairs' channels as one over the stored heads' channels, the norms left out."""
        by_pair = weight.unflatten(1, (-1, self.v_dim))
        by_head = by_pair.repeat_interleave(2, dim=1)[:, self.order.argsort()]
        return (by_head * self.weight.detach()[:, None].to(weight.dtype)).flatten(1)
