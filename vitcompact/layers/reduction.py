"""Fewer keys and values than queries: reduction of the tokens before the key and value projections.

A reduction maps `(batch, tokens, dim)` and the tokens' grid to `(batch, keys, dim)` and the keys' grid, which is None
where the keys lie on no grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.calls import Grid


class GridReduction(nn.Module):
    """Pooling (optional) and a strided convolution over the token grid (PVT, arXiv 2102.12122, section 3.3)."""

    keeps_grid = True

    def __init__(self, conv: nn.Module, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.pool = pool
        self.conv = conv

    def forward(self, x: Tensor, grid: Grid | None) -> tuple[Tensor, Grid | None]:
        if grid is None:
            raise UsageError("keys cannot be reduced over the token grid: this call does not tell the grid's size")
        image = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])
        image = self.conv(image if self.pool is None else self.pool(image))
        return image.flatten(2).transpose(1, 2), (image.shape[2], image.shape[3])


class SequenceReduction(nn.Module):
    """Mean over runs of consecutive tokens (E-MHSA of Next-ViT, arXiv 2207.05501, section 3.3)."""

    keeps_grid = False

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, grid: Grid | None) -> tuple[Tensor, Grid | None]:
        return self.pool(x.transpose(1, 2)).transpose(1, 2), None


class StridedMaxQueries(nn.Module):
    """Each query the maximum of `stride` that lie one sequence part apart (Hiera, arXiv 2306.00989, section 3)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, q: Tensor, grid: Grid | None) -> tuple[Tensor, Grid | None]:
        return q.unflatten(2, (self.stride, -1)).amax(dim=2), None


class PooledHeads(nn.Module):
    """Queries, keys or values of every head pooled over the token grid, then normalised (SAM 2; MViTv2).

    Tokens in front, which have no place on the grid, are not pooled.
    """

    def __init__(self, pool: nn.Module | None, norm: nn.Module | None = None, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.pool, self.norm, self.num_prefix_tokens = pool, norm, num_prefix_tokens

    def forward(self, x: Tensor, grid: Grid | None) -> tuple[Tensor, Grid | None]:
        """`x (batch, heads, tokens, channels)` and the grid of its tokens to those that are left."""
        if self.pool is not None:
            if grid is None:
                raise UsageError("tokens cannot be pooled over their grid: this call does not tell the grid's size")
            prefix, patches = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
            image = self.pool(patches.flatten(0, 1).transpose(1, 2).unflatten(2, grid))
            pooled = image.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
            x, grid = torch.cat((prefix, pooled), dim=2), (image.shape[2], image.shape[3])
        return x if self.norm is None else self.norm(x), grid


class StridedValuePath(nn.Module):
    """A strided depthwise convolution of the values beside attention from a coarser grid (EfficientFormerV2).

    Args:
        conv: of all heads' channels, `(channels, 1, height, width)`.
    """

    def __init__(self, conv: nn.Conv2d, num_heads: int) -> None:
        super().__init__()
        self.conv, self.num_heads = conv, num_heads

    def forward(self, v: Tensor, grid: Grid) -> Tensor:
        """`v (batch, keys, channels)` to `(batch, queries, channels)`."""
        image: Tensor = self.conv(v.transpose(1, 2).unflatten(2, grid))
        return image.flatten(2).transpose(1, 2)

    def keep_heads(self, heads: list[int]) -> None:
        """Bring the channels into the order of some heads; all are kept."""
        for parameter in self.conv.parameters():
            of_heads = parameter.data.unflatten(0, (self.num_heads, -1))
            parameter.data = of_heads[heads].flatten(0, 1)
