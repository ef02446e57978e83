"""What stands in the place of an output projection where a layer has none: the heads in their original order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.layers.layout import HeadLayout


class NoProjection(nn.Module):
    """Brings stored heads back into their original order and adds a bias; there is no matrix.

    Shape: `(batch, tokens, heads * v_dim)` to the same.
    """

    order: Tensor

    def __init__(self, layout: HeadLayout, v_dim: int) -> None:
        super().__init__()
        self.layout, self.v_dim = layout, v_dim
        self.in_features = self.out_features = len(layout.heads) * v_dim
        places = torch.tensor([layout.heads.index(head) for head in range(len(layout.heads))])
        index = (places[:, None] * v_dim + torch.arange(v_dim)).flatten()
        self.register_buffer("order", index, persistent=False)
        self.bias = nn.Parameter(torch.zeros(self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.order] + self.bias

    @property
    def weight(self) -> Tensor:
        """The order as a matrix `(outputs, inputs)`."""
        return torch.eye(self.in_features, dtype=self.bias.dtype, device=self.bias.device)[self.order]

    def blocks(self, weight: Tensor) -> Tensor:
        """Of a matrix `(outputs, inputs)`, what makes each head of itself, in stored order `(heads, v_dim, v_dim)`."""
        by_head = weight.unflatten(0, (-1, self.v_dim)).unflatten(2, (-1, self.v_dim))
        return torch.stack([by_head[head, :, place] for place, head in enumerate(self.layout.heads)])
