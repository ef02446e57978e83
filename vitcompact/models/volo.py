"""Attention of VOLO's later stages (timm/models/volo.py)."""

from __future__ import annotations

from typing import Any

from timm.models.volo import Attention

from vitcompact.layers.grid_calls import ChannelsLastCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class VoloAttention(AttentionFamily):
    """Fused qkv over `(batch, height, width, channels)`."""

    name = "volo"
    attention = Attention
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv), call=ChannelsLastCall())
