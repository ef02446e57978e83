"""Attention inside convolutional blocks, which pool what comes out: over the whole map, or windows with a halo."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.layers.calls import AttentionInputs, Grid, TokenCall


class PooledMapCall(TokenCall):
    """`forward(x)` on a feature map; the heads' outputs are pooled (timm/layers/bottleneck_attn.py).

    Args:
        pool: over the map, of each channel by itself.
        stride: rows and columns of the pooled map are so many times fewer.
    """

    on_grid = False

    def __init__(self, pool: nn.Module, stride: int) -> None:
        super().__init__()
        self.pool, self.stride = pool, stride

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x.flatten(2).transpose(1, 2), grid=(x.shape[2], x.shape[3]), shape=tuple(x.shape))

    def restore(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        if self.stride == 1:
            return out
        image: Tensor = self.pool(out.transpose(1, 2).unflatten(2, inputs.grid))
        return image.flatten(2).transpose(1, 2)

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        assert inputs.grid is not None
        return out.transpose(1, 2).unflatten(2, (inputs.grid[0] // self.stride, inputs.grid[1] // self.stride))


class HaloCall(PooledMapCall):
    """The same in windows, which queries, keys and values are cut into once they are made (timm/layers/halo_attn.py).

    Args:
        block: rows and columns of queries in a window.
        every: of so many rows and columns, one asks.
    """

    aligned = False

    def __init__(self, pool: nn.Module, stride: int, block: int, every: int) -> None:
        super().__init__(pool, stride)
        self.block, self.every = block, every

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        asking = x[:, :, :: self.every, :: self.every]
        tokens, context = (image.flatten(2).transpose(1, 2) for image in (asking, x))
        grids = ((image.shape[2], image.shape[3]) for image in (asking, x))
        return AttentionInputs(tokens, context=context, grid=next(grids), key_grid=next(grids), shape=tuple(x.shape))

    def restore(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        assert inputs.grid is not None
        (height, width), side = inputs.grid, self.block
        windows = out.reshape(inputs.shape[0], height // side, width // side, side, side, -1).transpose(2, 3)
        return super().restore(windows.reshape(inputs.shape[0], height * width, -1), inputs)


class Windows(nn.Module):
    """Cuts queries, keys or values into windows that become part of the batch; keys reach `halo` tokens further.

    Tokens past the edge are zero.
    """

    def __init__(self, block: int, halo: int) -> None:
        super().__init__()
        self.block, self.halo = block, halo

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """`x (batch, heads, tokens, channels)` to `(batch * windows, heads, tokens of a window, channels)`."""
        halo, side = self.halo, self.block + 2 * self.halo
        image = F.pad(x.unflatten(2, grid), (0, 0, halo, halo, halo, halo))
        windows = image.unfold(2, side, self.block).unfold(3, side, self.block)
        tokens = windows.permute(0, 2, 3, 1, 5, 6, 4)
        return tokens.flatten(4, 5).flatten(0, 2), (side, side)
