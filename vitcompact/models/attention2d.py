"""Attention of MobileNetV4 and V5 hybrids (timm/layers/attention2d.py)."""

from __future__ import annotations

from typing import Any

from timm.layers.attention2d import Attention2d, MultiQueryAttention2d
from torch import nn

from vitcompact.layers.calls import FeatureMapCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.reduction import GridReduction
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, by_head, fused, separate


class MultiQueryMapAttention(AttentionFamily):
    """One key and value head for all queries, made of a coarser map by convolutions of their own; 1x1 convolutions."""

    name = "multi-query"
    attention: Any = MultiQueryAttention2d
    known_parts = frozenset({"query", "key", "value", "attn_drop", "output"})
    channel_dim = 1

    def refuse(self, module: Any) -> str | None:
        if module.has_query_strides:
            return "its queries are pooled and its outputs upsampled"
        return super().refuse(module)

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **(around(module, module.output.proj) | {"output_dropout": module.output.drop}),
            **separate(module.query.proj, module.key.proj, module.value.proj),
            key_heads=1,
            value_heads=1,
            call=FeatureMapCall(),
            reduction=_reduction(module.key),
            value_reduction=_reduction(module.value),
        )


class MapAttention(AttentionFamily):
    """Fused qkv of 1x1 convolutions on feature maps."""

    name = "attention2d"
    attention: Any = Attention2d
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})
    channel_dim = 1

    def parts(self, module: Any) -> AttentionParts:
        heads, width = int(module.num_heads), int(module.dim_head)
        return AttentionParts(
            **(around(module) | {"scale": width**-0.5}),
            **(by_head(module.qkv, heads, width) if module.head_first else fused(module.qkv)),
            call=FeatureMapCall(),
        )


def _reduction(path: nn.Sequential) -> GridReduction | None:
    """What stands before a projection."""
    before = [part for name, part in path.named_children() if name != "proj"]
    return GridReduction(nn.Sequential(*before)) if before else None
