"""Calling conventions of layers that work on feature maps, windows or blocks, or ask from fewer tokens."""

from __future__ import annotations

from torch import Tensor, nn

from vitcompact.layers.calls import AttentionInputs, Grid, TokenCall


class ChannelsLastCall(TokenCall):
    """`forward(x)` on `(batch, height, width, dim)`; queries may have become fewer."""

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x.flatten(1, 2), grid=(x.shape[1], x.shape[2]))

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        return out.unflatten(1, inputs.query_grid)


class RelPosCall(TokenCall):
    """`forward(x, shared_rel_pos=None)` on tokens (timm/models/vision_transformer_relpos.py).

    A bias that all layers share is ignored by a layer that `has_own`.
    """

    def __init__(self, has_own: bool) -> None:
        super().__init__()
        self.has_own = has_own

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x, bias=None if self.has_own else shared_rel_pos)


class RelPosWindowCall(RelPosCall):
    """The same on `(windows, height, width, dim)` (timm/models/maxxvit.py)."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> AttentionInputs:  # type: ignore[override]
        bias = None if self.has_own else shared_rel_pos
        return AttentionInputs(x.flatten(1, 2), bias=bias, grid=(x.shape[1], x.shape[2]))

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        return out.unflatten(1, inputs.grid)


class RelPosMapCall(RelPosCall):
    """The same on a feature map `(batch, dim, height, width)`."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> AttentionInputs:  # type: ignore[override]
        bias = None if self.has_own else shared_rel_pos
        return AttentionInputs(x.flatten(2).transpose(1, 2), bias=bias, grid=(x.shape[2], x.shape[3]))

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        return out.transpose(1, 2).unflatten(2, inputs.grid)


class BlocksCall(TokenCall):
    """`forward(x)` on `(batch, blocks, tokens, dim)`: attention inside each block (timm/models/nest.py)."""

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x.flatten(0, 1), shape=x.shape)

    def restore(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        return out.unflatten(0, inputs.shape[:2])


class UnrolledCall(TokenCall):
    """`forward(x)` on tokens in which those of one window lie `tokens / window` apart (timm/models/hiera.py, `Unroll`).

    Args:
        window: tokens of a window; 0: all of them are one.
    """

    on_grid = False

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        batch, tokens, channels = x.shape
        if not self.window:
            return AttentionInputs(x, shape=(batch, 1))
        count = tokens // self.window
        windows = x.reshape(batch, self.window, count, channels).transpose(1, 2)
        return AttentionInputs(windows.reshape(batch * count, self.window, channels), shape=(batch, count))

    def restore(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        return out if not self.window else out.unflatten(0, inputs.shape).transpose(1, 2).flatten(1, 2)


class NormedCall(TokenCall):
    """`forward(x)` on tokens that the layer itself normalises first (timm/models/tiny_vit.py)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(self.norm(x))


class SubsampledCall(TokenCall):
    """`forward(x)` where fewer tokens ask than answer: `down` makes them (timm/models/levit.py).

    Args:
        down: a module over tokens, or over a feature map.
        grid: height and width of the tokens' grid; None: the layer works on feature maps.
        stride: rows and columns that one query stands for.
    """

    aligned = False

    def __init__(self, down: nn.Module, grid: Grid | None, stride: int) -> None:
        super().__init__()
        self.down, self.grid, self.stride = down, grid, stride

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        asking, keys = self.down(x), self.grid or (x.shape[2], x.shape[3])
        queries = (-(-keys[0] // self.stride), -(-keys[1] // self.stride))
        if self.grid is None:
            asking, x = (t.flatten(2).transpose(1, 2) for t in (asking, x))
        return AttentionInputs(asking, context=x, grid=queries, key_grid=keys)

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        return out if self.grid is not None else out.transpose(1, 2).unflatten(2, inputs.grid)


class GlobalQueryCall(TokenCall):
    """`forward(x, q_global=None)` on windows, image after image (timm/models/gcvit.py).

    Args:
        uses: whether the queries are `q_global`, those of one window for all windows of an image.
    """

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.uses = uses
        self.aligned = not uses

    def forward(self, x: Tensor, q_global: Tensor | None = None) -> AttentionInputs:  # type: ignore[override]
        if not self.uses or q_global is None:
            return AttentionInputs(x)
        each = q_global.flatten(1, -2)
        return AttentionInputs(x, query=each.repeat_interleave(x.shape[0] // each.shape[0], dim=0))


class ConvolvedCall(TokenCall):
    """`forward(x)` on a feature map: attention between the tokens that a convolution makes (timm/models/lowformer.py).

    Args:
        conv: from the feature map to a coarser one.
        after: brings the projected tokens' map back to the size of the first one, or past it.
        multiple: height and width are padded to multiples of this.
    """

    def __init__(self, conv: nn.Module, after: nn.Module, multiple: int) -> None:
        super().__init__()
        self.conv, self.after, self.multiple = conv, after, multiple

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        height, width = x.shape[-2:]
        if self.multiple > 1:
            x = nn.functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        image = self.conv(x)
        tokens = image.flatten(2).transpose(1, 2)
        return AttentionInputs(tokens, grid=(image.shape[2], image.shape[3]), shape=(height, width))

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        image: Tensor = self.after(out.transpose(1, 2).unflatten(2, inputs.grid))
        return image[..., : inputs.shape[0], : inputs.shape[1]]


class SizedCall(TokenCall):
    """`forward(x, size)` that returns the tokens and the height and width of their grid (timm/models/mvitv2.py)."""

    def forward(self, x: Tensor, size: Grid) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x, grid=(size[0], size[1]))

    def leave(self, out: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Grid | None]:  # type: ignore[override]
        return out, inputs.query_grid
