"""Attention of TNT, between patches and between the pixels of each patch (timm/models/tnt.py)."""

from __future__ import annotations

from typing import Any

from timm.models.tnt import Attention
from torch import nn

from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, query_key_and_value


class TntAttention(AttentionFamily):
    """Queries and keys in one layer, values in another and of another width."""

    name = "tnt"
    attention = Attention
    known_parts = frozenset({"qk", "v", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        around_it = around(module) | {"output_dropout": nn.Dropout(module.proj_drop.p)}
        return AttentionParts(**around_it, **query_key_and_value(module.qk, module.v))
