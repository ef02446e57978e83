"""Positions inside an attention layer: biases added to the logits, and rotary embeddings.

A bias module returns `(maps, queries, keys)`; `keep_heads` leaves it with the rows of some heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitcompact.layers.calls import Grid


class RelativeBias(nn.Module):
    """A learned table of biases by relative position (Swin, arXiv 2103.14030, equation 4; BEiT).

    Args:
        table: `(relative positions, heads)`.
        index: rows of the table by query and key, `(queries, keys)`.
        window_size: height and width that the table is for.
        resize: `(table, new size, old size) -> (table, index)`.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        table: Tensor,
        index: Tensor,
        window_size: Grid,
        resize: Callable[[Tensor, Grid, Grid], tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self.window_size = (window_size[0], window_size[1])
        self.relative_position_bias_table = nn.Parameter(table)
        self.register_buffer("relative_position_index", index, persistent=False)
        self._resize = resize

    def forward(self) -> Tensor:
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.view(-1)].view(*index.shape, -1)
        return bias.permute(2, 0, 1)

    def keep_heads(self, heads: list[int]) -> None:
        """Leave only the columns of some heads, in that order."""
        table = self.relative_position_bias_table
        self.relative_position_bias_table = nn.Parameter(table.detach()[:, heads].clone(), table.requires_grad)

    @torch.no_grad()
    def set_window_size(self, size: Grid) -> None:
        """Interpolate the table for another window, as the original layer does."""
        if size == self.window_size:
            return
        table = self.relative_position_bias_table
        resized, index = self._resize(table, size, self.window_size)
        self.relative_position_bias_table = nn.Parameter(resized, table.requires_grad)
        self.relative_position_index, self.window_size = index, size


class ContinuousBias(nn.Module):
    """Biases from relative coordinates by a small MLP, `16 sigmoid(MLP(dx, dy))` (Swin V2, arXiv 2111.09883, 3.3).

    Args:
        bounded: through the sigmoid; else the MLP's outputs themselves.
        num_prefix_tokens: tokens in front that have no position; their biases are zero.
        cpb_mlp: ends in a linear layer with one output a head.
        coords: `(1, rows, columns, 2)`.
        index: `(queries, keys)`.
        tables: `(coords, new size) -> (coords, index)`.
    """

    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(
        self,
        cpb_mlp: nn.Sequential,
        coords: Tensor,
        index: Tensor,
        tables: Callable[[Tensor, Grid], tuple[Tensor, Tensor]],
        bounded: bool = True,
        num_prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.cpb_mlp, self.bounded, self.num_prefix_tokens = cpb_mlp, bounded, num_prefix_tokens
        self.register_buffer("relative_coords_table", coords, persistent=False)
        self.register_buffer("relative_position_index", index, persistent=False)
        self._tables = tables

    def forward(self) -> Tensor:
        index = self.relative_position_index
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        bias = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)
        bias = 16 * bias.sigmoid() if self.bounded else bias
        prefix = self.num_prefix_tokens
        return nn.functional.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias

    def keep_heads(self, heads: list[int]) -> None:
        """Leave the MLP with the outputs of some heads, in that order."""
        old = self.cpb_mlp[-1]
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, len(heads), bias=old.bias is not None, device=old.weight.device)
        new.weight = nn.Parameter(old.weight.detach()[heads].clone(), old.weight.requires_grad)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach()[heads].clone(), old.bias.requires_grad)
        self.cpb_mlp[-1] = new

    def set_window_size(self, size: Grid) -> None:
        """Coordinates of another window; the MLP stays."""
        self.relative_coords_table, self.relative_position_index = self._tables(self.relative_coords_table, size)


class Rotary(nn.Module):
    """Rotary embedding of queries or keys `(batch, maps, tokens, qk_dim)`; prefix tokens are left alone.

    Pairs of channels are turned: neighbours, or with `half` the first half with the second (arXiv 2104.09864).
    """

    def __init__(self, num_prefix_tokens: int, half: bool) -> None:
        super().__init__()
        self.num_prefix_tokens, self.rotate_half = num_prefix_tokens, half

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        prefix, patches = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
        sine, cosine = rope.chunk(2, dim=-1)
        turned = patches * cosine + self._quarter_turn(patches) * sine
        return torch.cat((prefix, turned.to(x.dtype)), dim=2)

    def _quarter_turn(self, x: Tensor) -> Tensor:
        if self.rotate_half:
            first, second = x.chunk(2, dim=-1)
            return torch.cat((-second, first), dim=-1)
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).reshape(x.shape)


class CosineNorm(nn.Module):
    """Unit length, times a learned temperature a head where there is one: cosine attention (arXiv 2111.09883, eq. 2).

    Args:
        logit_scale: logarithm of the temperature, `(heads, 1, 1)`; None for the keys.
        largest: the logarithm is clamped to this.
    """

    def __init__(self, logit_scale: Tensor | None = None, largest: float = 0.0) -> None:
        super().__init__()
        self.logit_scale = None if logit_scale is None else nn.Parameter(logit_scale)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        unit = nn.functional.normalize(x, dim=-1)
        return unit if self.logit_scale is None else unit * self.logit_scale.clamp(max=self.largest).exp()

    def keep_heads(self, heads: list[int]) -> None:
        """Leave the temperatures of some heads, in that order."""
        if self.logit_scale is not None:
            scale = self.logit_scale
            self.logit_scale = nn.Parameter(scale.detach()[heads].clone(), scale.requires_grad)


class DecomposedBias(nn.Module):
    """Biases read from the queries, `q . (r_h(dy) + r_w(dx))`, one vector a distance in rows and columns.

    The vectors are shared by all heads (MViTv2, arXiv 2112.01526, equation 4; SAM). Tables for another grid are
    interpolated.

    Args:
        rows, columns: `(distances, qk_dim)`.
        num_prefix_tokens: tokens in front that have no position; their biases are zero.
    """

    def __init__(self, rows: Tensor, columns: Tensor, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.rows, self.columns = nn.Parameter(rows), nn.Parameter(columns)

    def forward(self, q: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
        """`q (batch, maps, queries, qk_dim)` to `(batch, maps, queries, keys)`; grids are (height, width)."""
        (height, width), (key_height, key_width) = grid, key_grid
        prefix = self.num_prefix_tokens
        image = q[:, :, prefix:].unflatten(2, (height, width))
        down = torch.einsum("bmyxc,ykc->bmyxk", image, self.distances(self.rows, height, key_height))
        along = torch.einsum("bmyxc,xkc->bmyxk", image, self.distances(self.columns, width, key_width))
        both = down[..., :, None] + along[..., None, :]
        bias = both.flatten(4, 5).flatten(2, 3)
        return nn.functional.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias

    def distances(self, table: Tensor, queries: int, keys: int) -> Tensor:
        """Rows of a table of relative positions by query and key along one axis, `(queries, keys, channels)`."""
        return _distances(table, queries, keys)


class OffsetBias(DecomposedBias):
    """The same where queries and keys are equally fine and the first query lies at the first key (arXiv 2101.11605).

    Keys may go on past the queries: windows with a halo (arXiv 2103.12731).
    """

    def distances(self, table: Tensor, queries: int, keys: int) -> Tensor:
        """Row `key - query + keys - 1`."""
        q, k = (torch.arange(count, device=table.device) for count in (queries, keys))
        return table[k - q[:, None] + keys - 1]


def _distances(table: Tensor, queries: int, keys: int) -> Tensor:
    size = 2 * max(queries, keys) - 1
    if table.shape[0] != size:
        table = nn.functional.interpolate(table.T[None].float(), size=size, mode="linear")[0].T.to(table.dtype)
    q = torch.arange(queries, device=table.device)[:, None] * max(keys / queries, 1.0)
    k = torch.arange(keys, device=table.device)[None, :] * max(queries / keys, 1.0)
    return table[(q - k + (keys - 1) * max(queries / keys, 1.0)).long()]
