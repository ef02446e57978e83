"""How blocks call their attention layer: what each calling convention means for the attention core.

A call module turns the arguments of `forward` into `AttentionInputs`; it may hold what the layer does to its tokens
before the projections. `restore` brings the heads'
outputs back to the order of the layer's tokens before the output projection, `leave` gives the projected tokens the
layout that the block expects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]


@dataclass
class AttentionInputs:
    """One call of an attention layer.

    Attributes:
        x: tokens that ask, `(batch, queries, dim)`; windows are part of the batch.
        context: tokens that answer, `(batch, keys, dim)`; `x` itself unless keys are reduced.
        query: queries of all heads that come from outside the layer, `(batch, queries, heads * qk_dim)`; or None.
        value_context: tokens that the values are made of, where they are others than `context`; or None.
        mask: who may see whom, boolean or additive, broadcast to `(batch, 1 or maps, queries, keys)`; or None.
        bias: added to the logits of each map, broadcast to `(batch, maps, queries, keys)`; or None.
        query_position_bias: the same, made from the queries by the layer itself.
        causal: each query sees the keys up to its own position.
        rope: sine and cosine side by side, `(..., tokens, 2 * qk_dim)`; or None.
        grid, key_grid: height and width of the token and key grids where the call tells.
        context_grid: that of `context`, which keys may then be pooled over.
        query_grid: that of the queries, where they are pooled.
        residual: what is added to the heads' outputs besides, `(batch, queries, heads * v_dim)`; or None.
        shape: of the tensor that the block handed over.
    """

    x: Tensor
    context: Tensor = field(default=None)  # type: ignore[assignment]
    query: Tensor | None = None
    value_context: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    query_position_bias: Tensor | None = None
    causal: bool = False
    rope: Tensor | None = None
    grid: Grid | None = None
    key_grid: Grid | None = None
    context_grid: Grid | None = None
    query_grid: Grid | None = None
    residual: Tensor | None = None
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.context is None:
            self.context = self.x


class TokenCall(nn.Module):
    """`forward(x, attn_mask=None, is_causal=False)` on `(batch, tokens, dim)` (timm/layers/attention.py)."""

    aligned = True
    """Whether the tokens that ask are those that answer, one by one."""
    on_grid = True
    """Whether the tokens lie on a grid row by row (after prefix tokens), so that 3x3 filters can act on them."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> AttentionInputs:
        return AttentionInputs(x, mask=attn_mask, causal=is_causal)

    def restore(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        """Heads' outputs `(batch, queries, channels)` in the order of the layer's tokens."""
        return out

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        """Projected tokens in the layout that the block expects."""
        return out


class RotaryCall(TokenCall):
    """`forward(x, rope=None, attn_mask=None, is_causal=False)` (timm/models/eva.py, `AttentionRope`)."""

    def forward(  # type: ignore[override]
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> AttentionInputs:
        return AttentionInputs(x, mask=attn_mask, causal=is_causal, rope=rope)


class SharedBiasCall(TokenCall):
    """`forward(x, shared_rel_pos_bias=None)`, a bias that all layers share (timm/models/beit.py)."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x, bias=shared_rel_pos_bias)


class GridCall(TokenCall):
    """`forward(x, size)`, tokens with the height and width of their grid (timm/models/pvt_v2.py, twins.py)."""

    def forward(self, x: Tensor, size: Grid) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x, grid=(size[0], size[1]))


class FeatureMapCall(TokenCall):
    """`forward(x)` on a feature map `(batch, dim, height, width)`."""

    def forward(self, x: Tensor) -> AttentionInputs:  # type: ignore[override]
        return AttentionInputs(x.flatten(2).transpose(1, 2), grid=(x.shape[2], x.shape[3]), shape=x.shape)

    def leave(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        batch, _, height, width = inputs.shape
        return out.transpose(1, 2).reshape(batch, -1, height, width)


class WindowedCall(TokenCall):
    """`forward(x, mask=None)` on windows `(images * windows, tokens, dim)` that the block has cut.

    `mask (windows, tokens, tokens)` is additive and the same for every image (timm/models/swin_transformer.py).
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> AttentionInputs:  # type: ignore[override]
        if mask is not None:
            mask = mask.repeat(x.shape[0] // mask.shape[0], 1, 1)[:, None]
        return AttentionInputs(x, mask=mask)


class WindowingCall(TokenCall):
    """`forward(x, size)`: the layer itself cuts its tokens into square windows (timm/models/twins.py, LSA).

    A grid that the window does not divide is padded with zeros at the right and the bottom, which take part as keys.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor, size: Grid) -> AttentionInputs:  # type: ignore[override]
        batch, _, channels = x.shape
        height, width = size
        side = self.window
        image = F.pad(x.reshape(batch, height, width, channels), (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = image.shape[1] // side, image.shape[2] // side
        windows = image.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
        tokens = windows.reshape(batch * rows * columns, side * side, channels)
        return AttentionInputs(tokens, grid=(side, side), shape=(batch, height, width))

    def restore(self, out: Tensor, inputs: AttentionInputs) -> Tensor:
        batch, height, width = inputs.shape
        side, channels = self.window, out.shape[-1]
        rows, columns = -(-height // side), -(-width // side)
        windows = out.reshape(batch, rows, columns, side, side, channels).transpose(2, 3)
        image = windows.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]
        return image.reshape(batch, height * width, channels)
