"""Attention of SAM's image encoder (timm/models/vision_transformer_sam.py)."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer_sam import Attention

from vitcompact.layers.grid_calls import ChannelsLastCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.position import DecomposedBias
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class SamAttention(AttentionFamily):
    """Fused qkv over `(batch, height, width, channels)`, windows cut by the block, positions read from the queries."""

    name = "sam"
    attention = Attention
    known_parts = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop", "rel_pos_h", "rel_pos_w"})

    def parts(self, module: Any) -> AttentionParts:
        tables = (module.rel_pos_h.detach(), module.rel_pos_w.detach()) if module.use_rel_pos else None
        return AttentionParts(
            **around(module),
            **fused(module.qkv),
            call=ChannelsLastCall(),
            query_norm=module.q_norm,
            key_norm=module.k_norm,
            query_position_bias=None if tables is None else DecomposedBias(*tables),
        )
