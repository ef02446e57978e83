"""Content attention of ConViT's last layers (timm/models/convit.py)."""

from __future__ import annotations

from typing import Any

from timm.models.convit import MHSA

from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class ConvitAttention(AttentionFamily):
    """Fused qkv over tokens."""

    name = "convit"
    attention = MHSA
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv))
