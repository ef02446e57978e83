"""Fewer keys and values than queries: reduction of the tokens before the key and value projections.

A reduction maps `(batch, tokens, dim)` and the tokens' grid to `(batch, keys, dim)` and the keys' grid, which is None
where the keys lie on no grid.
"""

from __future__ import annotations

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


class PooledQueries(nn.Module):
    """Queries pooled over the token grid, each channel by itself (SAM 2)."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, q: Tensor, grid: Grid | None) -> tuple[Tensor, Grid | None]:
        if grid is None:
            raise UsageError("queries cannot be pooled over the token grid: this call does not tell the grid's size")
        image = self.pool(q.flatten(0, 1).transpose(1, 2).unflatten(2, grid))
        pooled = image.flatten(2).transpose(1, 2).unflatten(0, q.shape[:2])
        return pooled, (image.shape[2], image.shape[3])
