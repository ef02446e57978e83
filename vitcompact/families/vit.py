"""timm.layers.Attention: ViT, DeiT, DeiT-III, DINOv2, SigLIP, CLIP towers (timm/layers/attention.py)."""

from __future__ import annotations

from timm.layers import Attention
from torch import nn

from vitcompact.families.base import AttentionFamily
from vitcompact.layers.parts import AttentionParts


class PlainAttention(AttentionFamily):
    """Fused qkv, optional QK norm, inner norm and sigmoid gate; no position bias inside the layer."""

    name = "plain"
    attention = Attention
    known_parts = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})

    def parts(self, module: nn.Module) -> AttentionParts:
        qkv, proj = module.qkv, module.proj
        assert isinstance(qkv, nn.Linear)
        assert isinstance(proj, nn.Linear)
        query, key, value = qkv.weight.chunk(3)
        biases = qkv.bias.chunk(3) if qkv.bias is not None else (None, None, None)
        return AttentionParts(
            num_heads=int(module.num_heads),  # type: ignore[arg-type]
            query=query,
            key=key,
            value=value,
            query_bias=biases[0],
            key_bias=biases[1],
            value_bias=biases[2],
            scale=float(module.scale),  # type: ignore[arg-type]
            query_norm=module.q_norm,  # type: ignore[arg-type]
            key_norm=module.k_norm,  # type: ignore[arg-type]
            inner_norm=module.norm,  # type: ignore[arg-type]
            gate=module.gate,  # type: ignore[arg-type]
            proj=proj,
            attention_dropout=float(module.attn_drop.p),  # type: ignore[union-attr, arg-type]
            output_dropout=module.proj_drop,  # type: ignore[arg-type]
        )
