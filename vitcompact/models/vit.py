"""timm.layers.Attention: ViT, DeiT, DeiT-III, DINOv2, SigLIP, CLIP towers (timm/layers/attention.py)."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention

from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class PlainAttention(AttentionFamily):
    """Fused qkv, optional QK norm, inner norm and sigmoid gate; no position bias inside the layer."""

    name = "plain"
    attention = Attention
    known_parts = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **fused(module.qkv),
            query_norm=module.q_norm,
            key_norm=module.k_norm,
            inner_norm=module.norm,
            gate=module.gate,
        )
