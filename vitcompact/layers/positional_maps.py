"""Attention maps that depend on positions only, beside those that depend on the tokens (ConViT, arXiv 2103.10697)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.layers.calls import Grid


class PositionalMaps(nn.Module):
    """Adds `share_h P_h V_h`, `P_h` the softmax over keys of a linear map of their offsets from the query.

    Args:
        weight: of the offsets in columns and rows and their squared distance, `(heads, 3)`.
        share: factor of each head's map, `(heads,)`.
    """

    def __init__(self, weight: Tensor, share: Tensor) -> None:
        super().__init__()
        self.weight, self.share = nn.Parameter(weight), nn.Parameter(share)

    def forward(self, v: Tensor, grid: Grid | None) -> Tensor:
        """`v (batch, tokens, channels)`, tokens on a square grid row by row, to the same shape."""
        side = round(v.shape[1] ** 0.5)
        place = torch.arange(side, device=v.device, dtype=v.dtype)
        step = place - place[:, None]
        columns = step.repeat(side, side)
        rows = step.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)
        offsets = torch.stack((columns, rows, columns**2 + rows**2), dim=-1)
        maps = (offsets @ self.weight.T).permute(2, 0, 1).softmax(dim=-1) * self.share[:, None, None]
        values = v.unflatten(-1, (len(maps), -1)).transpose(1, 2)
        return (maps @ values).transpose(1, 2).flatten(2)

    def keep_heads(self, heads: list[int]) -> None:
        """Take the heads in another order."""
        for name in ("weight", "share"):
            parameter = getattr(self, name)
            setattr(self, name, nn.Parameter(parameter.detach()[heads].clone(), parameter.requires_grad))
