"""Attention of ViTs with relative position biases (timm/models/vision_transformer_relpos.py)."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer_relpos import RelPosAttention

from vitcompact.layers.grid_calls import RelPosCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import refuse_rel_pos, rel_pos_bias
from vitcompact.models.projections import around, fused


class RelPosVitAttention(AttentionFamily):
    """Fused qkv, optional QK norm, a bias of the layer or one shared by all."""

    name = "relpos"
    attention = RelPosAttention
    known_parts = frozenset({"qkv", "q_norm", "k_norm", "rel_pos", "attn_drop", "proj", "proj_drop"})

    def refuse(self, module: Any) -> str | None:
        return super().refuse(module) or refuse_rel_pos(module.rel_pos)

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **fused(module.qkv),
            query_norm=module.q_norm,
            key_norm=module.k_norm,
            call=RelPosCall(module.rel_pos is not None),
            position_bias=rel_pos_bias(module.rel_pos),
        )
