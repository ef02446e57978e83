"""Attention of MViTv2 (timm/models/mvitv2.py): pooled queries, keys and values, pooled queries added to the outputs."""

from __future__ import annotations

from typing import Any

from timm.models.mvitv2 import MultiScaleAttention

from vitcompact.layers.grid_calls import SizedCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.position import DecomposedBias
from vitcompact.layers.reduction import PooledHeads
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class MvitAttention(AttentionFamily):
    """Fused qkv, each pooled head by head with the same convolution; positions are read from the queries."""

    name = "mvitv2"
    attention = MultiScaleAttention
    known_parts = frozenset({"qkv", "proj", "rel_pos_h", "rel_pos_w"}) | {
        f"{kind}_{part}" for kind in ("pool", "norm") for part in "qkv"
    }

    def refuse(self, module: Any) -> str | None:
        if module.unshared:
            return "its poolings differ between heads"
        return super().refuse(module)

    def target_of(self, module: Any) -> str | None:
        return "proj"  # the layer itself returns the grid too

    def parts(self, module: Any) -> AttentionParts:
        prefix = int(module.has_cls_token)
        pools = {part: _pool(module, part, prefix) for part in "qkv"}
        spatial = module.rel_pos_type == "spatial"
        tables = (module.rel_pos_h.detach(), module.rel_pos_w.detach()) if spatial else None
        return AttentionParts(
            **around(module),
            **fused(module.qkv) | {"packing": ("q", "k", "v")},
            call=SizedCall(),
            query_pool=pools["q"],
            key_pool=pools["k"],
            value_pool=pools["v"],
            query_position_bias=None if tables is None else DecomposedBias(*tables, num_prefix_tokens=prefix),
            residual_queries=bool(module.residual_pooling),
        )


def _pool(module: Any, part: str, prefix: int) -> PooledHeads | None:
    pool, norm = getattr(module, f"pool_{part}"), getattr(module, f"norm_{part}")
    return None if pool is None and norm is None else PooledHeads(pool, norm, prefix)
