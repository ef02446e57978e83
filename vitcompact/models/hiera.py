"""Attention with pooled queries: Hiera (timm/models/hiera.py) and the trunk of SAM 2 (timm/models/hieradet_sam2.py)."""

from __future__ import annotations

from typing import Any

from timm.models.hiera import MaskUnitAttention
from timm.models.hieradet_sam2 import MultiScaleAttention

from vitcompact.layers.grid_calls import ChannelsLastCall, UnrolledCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.reduction import PooledHeads, StridedMaxQueries
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class HieraAttention(AttentionFamily):
    """Fused qkv over unrolled tokens, in windows or over all; the maximum of some queries asks for them."""

    name = "hiera"
    attention = MaskUnitAttention
    known_parts = frozenset({"qkv", "proj"})

    def parts(self, module: Any) -> AttentionParts:
        stride = int(module.q_stride)
        window = stride * int(module.window_size) if module.use_mask_unit_attn else 0
        return AttentionParts(
            **around(module),
            **fused(module.qkv),
            call=UnrolledCall(window),
            query_pool=StridedMaxQueries(stride) if stride > 1 else None,
            attributes={"q_stride": stride},
        )


class Sam2Attention(AttentionFamily):
    """Fused qkv over `(batch, height, width, channels)`, windows cut by the block; queries pooled between stages."""

    name = "sam2"
    attention = MultiScaleAttention
    known_parts = frozenset({"qkv", "proj", "q_pool"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **fused(module.qkv),
            call=ChannelsLastCall(),
            query_pool=None if module.q_pool is None else PooledHeads(module.q_pool),
        )
