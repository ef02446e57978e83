"""Attention of Visformer, 1x1 convolutions on feature maps (timm/models/visformer.py)."""

from __future__ import annotations

from typing import Any

from timm.models.visformer import Attention

from vitcompact.layers.calls import FeatureMapCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class VisformerAttention(AttentionFamily):
    """Fused qkv over `(batch, channels, height, width)`."""

    name = "visformer"
    attention = Attention
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})
    channel_dim = 1

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv), call=FeatureMapCall())
