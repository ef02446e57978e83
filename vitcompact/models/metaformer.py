"""Attention of CAFormer (timm/models/metaformer.py)."""

from __future__ import annotations

from typing import Any

from timm.models.metaformer import Attention

from vitcompact.layers.calls import TokenCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class MetaFormerAttention(AttentionFamily):
    """Fused qkv, no bias anywhere."""

    name = "metaformer"
    attention = Attention
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv), call=TokenCall())
