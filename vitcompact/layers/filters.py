"""3x3 filters over the token grid: of a hallucinated attention map, and of the heads' own values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.calls import Grid


class MapFilter(nn.Module):
    """`kappa = sum_t u_t v_t^T`: V is filtered along keys with `v_t`, attended, filtered along queries with `u_t`.

    Shifts act on the 2-D token grid; class and register tokens are left alone (they pass through term 0 unchanged
    and through no other). Heads that are not hallucinated are not filtered.

    Parameters `query` and `key`: `(rank, hallucinated heads, 3, 3)`, initially the identity for term 0, else zero.
    """

    def __init__(
        self,
        hallucinated: Sequence[int],
        num_heads: int,
        v_dim: int,
        rank: int,
        num_prefix_tokens: int,
        grid_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.hallucinated, self.num_heads, self.v_dim = tuple(hallucinated), num_heads, v_dim
        self.num_prefix_tokens, self.grid_size = num_prefix_tokens, grid_size
        start = torch.zeros(rank, len(self.hallucinated), 3, 3)
        start[0, :, 1, 1] = 1.0
        self.query = nn.Parameter(start.clone())
        self.key = nn.Parameter(start.clone())

    @property
    def rank(self) -> int:
        """Number of separable terms."""
        return self.query.shape[0]

    def forward(
        self, v: Tensor, attend: Callable[[Tensor], Tensor], grid: Grid | None = None, key_grid: Grid | None = None
    ) -> Tensor:
        """`v (batch, keys, heads * v_dim)` to the filtered maps applied to it, `(batch, queries, heads * v_dim)`.

        Args:
            grid, key_grid: of this call's queries and keys, where known.
        """
        values = self._along_tokens(v, self.key[0], True, key_grid)
        out = self._along_tokens(attend(values), self.query[0], True, grid)
        for term in range(1, self.rank):
            values = self._along_tokens(v, self.key[term], False, key_grid)
            out = out + self._along_tokens(attend(values), self.query[term], False, grid)
        return out

    def _along_tokens(self, x: Tensor, kernel: Tensor, first: bool, grid: Grid | None) -> Tensor:
        """Filter the hallucinated heads' channels of `x (batch, tokens, channels)` over the token grid."""
        batch, tokens, channels = x.shape
        height, width = grid or square_grid(tokens - self.num_prefix_tokens, self.grid_size)
        full = torch.zeros(self.num_heads, 3, 3, dtype=x.dtype, device=x.device)
        if first:
            full[:, 1, 1] = 1.0
        full = full.index_put((torch.tensor(self.hallucinated, device=x.device),), kernel.to(x.dtype))
        weight = full.repeat_interleave(self.v_dim, dim=0)[:, None]
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        image = patches.transpose(1, 2).reshape(batch, channels, height, width)
        filtered = F.conv2d(image, weight, padding=1, groups=channels).flatten(2).transpose(1, 2)
        return torch.cat((prefix if first else torch.zeros_like(prefix), filtered), dim=1)


class ValueFilter(nn.Module):
    """A depthwise 3x3 filter of every head's own values over the token grid: a local map beside the softmax one.

    A head's output becomes `A V + K * V` with one kernel `K` for all of its channels, zero padding at the border. It is
    linear in V like the identity path, which is its middle tap. Class and register tokens neither give nor take.

    Parameter `weight`: `(heads, 3, 3)`, initially zero.
    """

    def __init__(self, num_heads: int, num_prefix_tokens: int, grid_size: Grid | None) -> None:
        super().__init__()
        self.num_prefix_tokens, self.grid_size = num_prefix_tokens, grid_size
        self.weight = nn.Parameter(torch.zeros(num_heads, 3, 3))

    def forward(self, v: Tensor, grid: Grid | None = None) -> Tensor:
        """`v (batch, tokens, heads * v_dim)` to what is added to the heads' outputs, of the same shape."""
        image = self.image(v, grid)
        channels = image.shape[1]
        kernels = self.weight.to(v.dtype).repeat_interleave(channels // len(self.weight), dim=0)[:, None]
        filtered = F.conv2d(image, kernels, padding=1, groups=channels).permute(0, 2, 3, 1).flatten(1, 2)
        return F.pad(filtered, (0, 0, self.num_prefix_tokens, 0))

    def image(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """The patch tokens of `(batch, tokens, channels)` on their grid, `(batch, channels, height, width)`.

        Raises:
            UsageError: nothing tells the grid of so many tokens.
        """
        patches = tokens[:, self.num_prefix_tokens :]
        size = grid or square_grid(patches.shape[1], self.grid_size)
        return patches.unflatten(1, size).permute(0, 3, 1, 2)


def square_grid(patches: int, known: Grid | None) -> Grid:
    """The grid that is known if it has so many patches, else a square.

    Raises:
        UsageError: it is neither.
    """
    if known is not None and math.prod(known) == patches:
        return known
    side = math.isqrt(patches)
    if side * side != patches:
        raise UsageError(f"a 3x3 filter needs the token grid: {patches} patches are neither {known} nor a square")
    return side, side
