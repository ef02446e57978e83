"""Attention of ConViT (timm/models/convit.py): positional in the first layers, of content alone in the last."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.convit import GPSA, MHSA

from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.positional_maps import PositionalMaps
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused, query_key_and_value


class ConvitAttention(AttentionFamily):
    """Fused qkv over tokens."""

    name = "convit"
    attention = MHSA
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv))


class ConvitPositionalAttention(AttentionFamily):
    """Each map a gated sum of one from content and one from positions: `(1 - g) A V + g P V = A V' + g / (1 - g) P V'`.

    The map of a hallucinated head is the parent's content map beside its own map of positions.
    """

    name = "convit-positional"
    attention = GPSA
    known_parts = frozenset({"qk", "v", "attn_drop", "proj", "pos_proj", "proj_drop", "gating_param", "rel_indices"})

    @torch.no_grad()
    def parts(self, module: Any) -> AttentionParts:
        rest = torch.sigmoid(-module.gating_param.double())
        projections = query_key_and_value(module.qk, module.v)
        width = len(projections["value"]) // int(module.num_heads)
        for name in ("value", "value_bias"):
            rows = projections[name]
            if rows is not None:
                factors = rest.repeat_interleave(width).view(-1, *[1] * (rows.dim() - 1))
                projections[name] = (rows.double() * factors).to(rows.dtype)
        share = ((1 - rest) / rest).to(module.gating_param.dtype)
        return AttentionParts(
            **around(module), **projections, value_path=PositionalMaps(module.pos_proj.weight.detach(), share)
        )
