"""Attention of LeViT (timm/models/levit.py): batch norms behind every linear layer, which are folded in."""

from __future__ import annotations

from typing import Any

from timm.models.levit import Attention, AttentionDownsample

from vitcompact.layers.calls import FeatureMapCall, TokenCall
from vitcompact.layers.grid_calls import SubsampledCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import fixed_bias
from vitcompact.models.projections import around, by_head, query_and_rest_by_head

BIASES = frozenset({"attention_biases", "attention_bias_idxs"})


class LevitAttention(AttentionFamily):
    """Values wider than keys, a table of position biases, an activation before the output projection."""

    name = "levit"
    attention = Attention
    known_parts = BIASES | {"qkv", "proj"}

    def channel_dim_of(self, module: Any) -> int:
        return 1 if module.use_conv else -1

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module, module.proj.ln),
            **by_head(module.qkv, int(module.num_heads), int(module.key_dim)),
            call=FeatureMapCall() if module.use_conv else TokenCall(),
            position_bias=fixed_bias(module.attention_biases, module.attention_bias_idxs),
            inner_norm=module.proj.act,
        )


class LevitDownsampling(LevitAttention):
    """The same with queries from every other row and column."""

    name = "levit-downsample"
    attention = AttentionDownsample
    known_parts = BIASES | {"q", "kv", "proj"}

    def parts(self, module: Any) -> AttentionParts:
        grid = None if module.use_conv else (int(module.resolution[0]), int(module.resolution[1]))
        return AttentionParts(
            **around(module, module.proj.ln),
            **query_and_rest_by_head(module.q.ln, module.kv, int(module.num_heads), int(module.key_dim)),
            call=SubsampledCall(module.q.down, grid, int(module.stride)),
            position_bias=fixed_bias(module.attention_biases, module.attention_bias_idxs),
            inner_norm=module.proj.act,
        )
