"""Window attention of Swin (timm/models/swin_transformer.py) and Swin V2 (timm/models/swin_transformer_v2.py)."""

from __future__ import annotations

import math
from typing import Any

from timm.models import swin_transformer, swin_transformer_v2

from vitcompact.layers.calls import WindowedCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.position import CosineNorm
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import continuous_bias, swin_bias
from vitcompact.models.projections import around, fused, fused_without_key_bias

WINDOW_PARTS = frozenset({"qkv", "attn_drop", "proj", "proj_drop", "softmax", "relative_position_index"})


class SwinAttention(AttentionFamily):
    """Fused qkv, a table of relative position biases, a mask where windows are shifted."""

    name = "swin"
    attention = swin_transformer.WindowAttention
    known_parts = WINDOW_PARTS | {"relative_position_bias_table"}

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module), **fused(module.qkv), call=WindowedCall(), position_bias=swin_bias(module)
        )


class SwinV2Attention(AttentionFamily):
    """Cosine attention with a temperature a head, biases from an MLP over coordinates, no bias of the keys."""

    name = "swin-v2"
    attention = swin_transformer_v2.WindowAttention
    known_parts = WINDOW_PARTS | {
        *("q_bias", "k_bias", "v_bias"),
        *("logit_scale", "cpb_mlp", "relative_coords_table"),
    }

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **fused_without_key_bias(module.qkv, module.q_bias, module.v_bias),
            call=WindowedCall(),
            query_norm=CosineNorm(module.logit_scale.detach(), largest=math.log(1.0 / 0.01)),
            key_norm=CosineNorm(),
            position_bias=continuous_bias(module),
        )
