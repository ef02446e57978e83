"""torch.nn.MultiheadAttention where a module attends to itself: torchvision's ViT, and layers of the user's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.self_call import SelfAttentionCall
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import named, rows_of


class TorchAttention(AttentionFamily):
    """Fused projections, images before tokens."""

    name = "torch"
    attention = nn.MultiheadAttention
    known_parts = frozenset({"in_proj_weight", "in_proj_bias", "out_proj"})

    def refuse(self, module: Any) -> str | None:
        if module.add_zero_attn:
            return "it adds a key of zeros"
        if not module.batch_first:
            return "tokens come before images in it (batch_first=False)"
        return super().refuse(module)

    def parts(self, module: Any) -> AttentionParts:
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        proj_weight, proj_bias = rows_of(module.out_proj)
        heads = int(module.num_heads)
        return AttentionParts(
            **named(*zip(module.in_proj_weight.chunk(3), biases, strict=True)),
            num_heads=heads,
            scale=(int(module.embed_dim) // heads) ** -0.5,
            proj_weight=proj_weight,
            proj_bias=proj_bias,
            training=bool(module.training),
            attention_dropout=float(module.dropout),
            output_dropout=nn.Identity(),
            call=SelfAttentionCall(),
            # TransformerEncoderLayer looks these up and then takes its plain path
            attributes={"batch_first": True, "in_proj_bias": None, "_qkv_same_embed_dim": False},
        )
