"""Window attention of GCViT (timm/models/gcvit.py)."""

from __future__ import annotations

from typing import Any

from timm.models.gcvit import WindowAttentionGlobal

from vitcompact.layers.grid_calls import GlobalQueryCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import refuse_rel_pos, rel_pos_bias
from vitcompact.models.projections import around, fused, keys_and_values


class GcVitAttention(AttentionFamily):
    """Fused qkv in windows that the block has cut, with position biases; or keys and values, and global queries."""

    name = "gcvit"
    attention = WindowAttentionGlobal
    known_parts = frozenset({"qkv", "rel_pos", "attn_drop", "proj", "proj_drop"})

    def refuse(self, module: Any) -> str | None:
        return super().refuse(module) or refuse_rel_pos(module.rel_pos)

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **(keys_and_values(module.qkv) if module.use_global else fused(module.qkv)),
            call=GlobalQueryCall(bool(module.use_global)),
            position_bias=rel_pos_bias(module.rel_pos),
        )
