"""Attention of MaxViT, CoAtNet and kin (timm/models/maxxvit.py)."""

from __future__ import annotations

from typing import Any

from timm.models.maxxvit import Attention2d, AttentionCl

from vitcompact.layers.grid_calls import RelPosMapCall, RelPosWindowCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import refuse_rel_pos, rel_pos_bias
from vitcompact.models.projections import around, by_head, fused


class MaxxVitWindowAttention(AttentionFamily):
    """Fused qkv on windows and grids that the block has cut, channels last."""

    name = "maxxvit-windows"
    attention = AttentionCl
    known_parts = frozenset({"qkv", "rel_pos", "attn_drop", "proj", "proj_drop"})
    call: type[RelPosWindowCall | RelPosMapCall] = RelPosWindowCall

    def refuse(self, module: Any) -> str | None:
        return super().refuse(module) or refuse_rel_pos(module.rel_pos)

    def parts(self, module: Any) -> AttentionParts:
        heads = int(module.num_heads)
        return AttentionParts(
            **around(module),
            **(by_head(module.qkv, heads, module.dim_head) if module.head_first else fused(module.qkv)),
            call=self.call(module.rel_pos is not None),
            position_bias=rel_pos_bias(module.rel_pos),
        )


class MaxxVitMapAttention(MaxxVitWindowAttention):
    """The same on feature maps, of 1x1 convolutions."""

    name = "maxxvit-maps"
    attention = Attention2d
    channel_dim = 1
    call = RelPosMapCall
