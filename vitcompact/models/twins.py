"""Locally grouped attention of Twins-SVT (timm/models/twins.py)."""

from __future__ import annotations

from typing import Any

from timm.models.twins import LocallyGroupedAttn

from vitcompact.layers.calls import WindowingCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.projections import around, fused


class TwinsLocalAttention(AttentionFamily):
    """Fused qkv in square windows that the layer cuts itself."""

    name = "twins-local"
    attention = LocallyGroupedAttn
    known_parts = frozenset({"qkv", "attn_drop", "proj", "proj_drop"})

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(**around(module), **fused(module.qkv), call=WindowingCall(int(module.ws)))
