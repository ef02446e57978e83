"""Attention of NesT inside blocks of the image (timm/models/nest.py)."""

from __future__ import annotations

from typing import Any

from timm.models.nest import Attention

from vitcompact.layers.grid_calls import BlocksCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class NestAttention(AttentionFamily):
    """Fused qkv over `(batch, blocks, tokens, channels)`."""

    name = "nest"
    attention = Attention
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        around_it = around(module)
        return AttentionParts(**around_it | _head_by_head(around_it), **fused(module.qkv), call=BlocksCall())


def _head_by_head(around_it: dict[str, Any]) -> dict[str, Any]:
    """The output projection for heads side by side; NesT puts channel i of all heads together."""
    columns = around_it["proj_weight"].unflatten(1, (-1, around_it["num_heads"]))
    return {"proj_weight": columns.transpose(1, 2).flatten(1)}
