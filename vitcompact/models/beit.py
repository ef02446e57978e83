"""Attention of BEiT and BEiT v2 (timm/models/beit.py)."""

from __future__ import annotations

from typing import Any

from timm.models.beit import Attention

from vitcompact.layers.calls import SharedBiasCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import beit_bias
from vitcompact.models.projections import around, fused_without_key_bias


class BeitAttention(AttentionFamily):
    """Fused qkv without a bias of the keys; relative position biases of the layer, of all layers, or both."""

    name = "beit"
    attention = Attention
    known_parts = frozenset(
        {"qkv", "q_bias", "k_bias", "v_bias", "relative_position_bias_table", "relative_position_index"}
    ) | {"attn_drop", "proj", "proj_drop"}

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **fused_without_key_bias(module.qkv, module.q_bias, module.v_bias),
            call=SharedBiasCall(),
            position_bias=beit_bias(module),
        )
