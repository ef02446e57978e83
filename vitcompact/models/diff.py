"""Differential attention (timm/layers/diff_attention.py): each head is the difference of two maps."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.diff_attention import DiffAttention

from vitcompact.layers.paired_heads import PairedHeads
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused

LAMBDAS = frozenset({"lambda_a", "lambda_b", "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"})


class DifferentialAttention(AttentionFamily):
    """Fused qkv; two heads of queries and keys read each value head, and their outputs are subtracted."""

    name = "diff"
    attention = DiffAttention
    known_parts = LAMBDAS | {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop", "sub_norm"}

    @torch.no_grad()
    def parts(self, module: Any) -> AttentionParts:
        pairs = int(module.num_heads)
        weight = module.qkv.weight.new_ones(pairs, 2)
        weight[:, 1] = -module._compute_lambda()
        factor = 1 - float(module.lambda_init)
        return AttentionParts(
            **(around(module) | {"num_heads": 2 * pairs}),
            **fused(module.qkv),
            value_heads=pairs,
            query_norm=module.q_norm,
            key_norm=module.k_norm,
            inner_norm=PairedHeads(weight.flatten(), 2 * int(module.head_dim), module.sub_norm, factor, module.norm),
        )
