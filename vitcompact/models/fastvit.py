"""Attention of FastViT and MobileCLIP's image towers (timm/models/fastvit.py)."""

from __future__ import annotations

from typing import Any

from timm.models.fastvit import Attention

from vitcompact.layers.calls import FeatureMapCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class FastVitAttention(AttentionFamily):
    """Fused qkv over feature maps `(batch, channels, height, width)`."""

    name = "fastvit"
    attention = Attention
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})
    channel_dim = 1

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv), call=FeatureMapCall())
