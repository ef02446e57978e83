"""Attention inside ResNet-like blocks: BoTNet and HaloNet (timm/layers/bottleneck_attn.py, halo_attn.py)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

from vitcompact.layers.halo import HaloCall, PooledMapCall, Windows
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.position import OffsetBias
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import named, query_and_rest_by_head, rows_of


class BottleneckAttention(AttentionFamily):
    """Fused qkv over the whole feature map, positions read from the queries, no output projection, pooled outputs."""

    name = "bottleneck"
    attention: Any = BottleneckAttn
    known_parts = frozenset({"qkv", "pos_embed", "pool"})
    channel_dim = 1

    def parts(self, module: Any) -> AttentionParts:
        weight, bias = rows_of(module.qkv)
        widths = [int(module.dim_out_qk), int(module.dim_out_qk), int(module.dim_out_v)]
        biases: Any = [None] * 3 if bias is None else bias.split(widths)
        return AttentionParts(
            **named(*zip(weight.split(widths), biases, strict=True)),
            **_around(module),
            call=PooledMapCall(module.pool, _stride(module.pool)),
        )


class HaloAttention(AttentionFamily):
    """Windows of queries, each with a halo of keys; every other row and column of queries, or pooled outputs."""

    name = "halo"
    attention: Any = HaloAttn
    known_parts = frozenset({"q", "kv", "pos_embed", "pool"})
    channel_dim = 1

    def refuse(self, module: Any) -> str | None:
        if module.kv.bias is not None:
            return "its keys have a bias, which those past the edge of the map are without"
        return super().refuse(module)

    def parts(self, module: Any) -> AttentionParts:
        block, halo = int(module.block_size), int(module.halo_size)
        stride = int(module.block_stride)
        query = nn.Conv2d(module.q.in_channels, module.q.out_channels, 1, bias=module.q.bias is not None, device="meta")
        query.weight, query.bias = module.q.weight, module.q.bias  # the stride is the call's
        return AttentionParts(
            **query_and_rest_by_head(query, module.kv, int(module.num_heads), int(module.dim_head_qk)),
            **_around(module),
            call=HaloCall(module.pool, _stride(module.pool), int(module.block_size_ds), stride),
            query_pool=Windows(int(module.block_size_ds), 0),
            key_pool=Windows(block, halo),
            value_pool=Windows(block, halo),
        )


def _around(module: Any) -> dict[str, Any]:
    """What both have alike."""
    return {
        "num_heads": int(module.num_heads),
        "scale": float(module.scale),
        "proj_weight": None,
        "proj_bias": None,
        "training": bool(module.training),
        "attention_dropout": 0.0,
        "output_dropout": nn.Identity(),
        "query_position_bias": OffsetBias(_table(module, "height_rel"), _table(module, "width_rel")),
    }


@torch.no_grad()
def _table(module: Any, name: str) -> Tensor:
    """Vectors by row or column offset, whose products with the queries are added to scaled logits."""
    table: Tensor = getattr(module.pos_embed, name).detach()
    return table * float(module.scale) if module.scale_pos_embed else table


def _stride(pool: nn.Module) -> int:
    return 1 if isinstance(pool, nn.Identity) else 2
