"""Window attention of DaViT and Florence-2's image towers (timm/models/davit.py)."""

from __future__ import annotations

from typing import Any

from timm.models.davit import WindowAttention

from vitcompact.layers.calls import TokenCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class DaVitAttention(AttentionFamily):
    """Fused qkv in windows that the block has cut; no position bias."""

    name = "davit"
    attention = WindowAttention
    known_parts = frozenset({"qkv", "proj", "softmax"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv), call=TokenCall())
