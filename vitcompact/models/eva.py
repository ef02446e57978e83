"""Attention with rotary embeddings: EVA, EVA-02, DINOv3 (timm/models/eva.py) and `AttentionRope`."""

from __future__ import annotations

from typing import Any

from timm.layers import AttentionRope
from timm.models.eva import EvaAttention
from torch import nn

from vitcompact.layers.calls import RotaryCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.position import Rotary
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused, fused_without_key_bias, separate

SHARED = frozenset(
    {"qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
)


class RopeAttention(AttentionFamily):
    """Fused or separate projections, optional norms and gate, a rotary embedding where the block hands one over."""

    name = "rope"
    attention = AttentionRope
    known_parts = SHARED

    def refuse(self, module: Any) -> str | None:
        if getattr(module, "num_kv_groups", 1) > 1 and not isinstance(module.norm, nn.Identity):
            return "keys and values are shared between heads whose outputs are normalised"
        return super().refuse(module)

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **self._projections(module),
            call=RotaryCall(),
            **_shared(module),
            rotary=Rotary(int(module.num_prefix_tokens), bool(getattr(module, "rotate_half", False))),
            query_norm=module.q_norm,
            key_norm=module.k_norm,
            inner_norm=module.norm,
            gate=module.gate,
        )

    def _projections(self, module: Any) -> dict[str, Any]:
        if module.qkv is None:
            return separate(module.q_proj, module.k_proj, module.v_proj)
        return fused(module.qkv)


class Eva(RopeAttention):
    """The same without a bias of the keys."""

    name = "eva"
    attention = EvaAttention
    known_parts = SHARED | {"q_bias", "k_bias", "v_bias"}

    def _projections(self, module: Any) -> dict[str, Any]:
        if module.qkv is None:
            return separate(module.q_proj, module.k_proj, module.v_proj)
        return fused_without_key_bias(module.qkv, module.q_bias, module.v_bias)


def _shared(module: Any) -> dict[str, Any]:
    """How many key and value heads there are, where several heads share one."""
    if getattr(module, "num_kv_groups", 1) == 1:
        return {}
    return {"key_heads": int(module.num_kv_heads), "value_heads": int(module.num_kv_heads)}
