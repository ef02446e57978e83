"""Attention of TinyViT (timm/models/tiny_vit.py) and EfficientFormer (timm/models/efficientformer.py)."""

from __future__ import annotations

from typing import Any

from timm.models import efficientformer, tiny_vit

from vitcompact.layers.calls import TokenCall
from vitcompact.layers.grid_calls import NormedCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import fixed_bias
from vitcompact.models.projections import around, by_head

BIASES = frozenset({"qkv", "proj", "attention_biases", "attention_bias_idxs"})


class EfficientFormerAttention(AttentionFamily):
    """Values wider than keys, a table of position biases."""

    name = "efficientformer"
    attention: Any = efficientformer.Attention
    known_parts = BIASES

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module),
            **by_head(module.qkv, int(module.num_heads), int(module.key_dim)),
            call=self._call(module),
            position_bias=fixed_bias(module.attention_biases, module.attention_bias_idxs),
        )

    def _call(self, module: Any) -> TokenCall:
        return TokenCall()


class TinyVitAttention(EfficientFormerAttention):
    """The same in windows that the block has cut, with the norm inside the layer."""

    name = "tiny-vit"
    attention = tiny_vit.Attention
    known_parts = BIASES | {"norm"}

    def _call(self, module: Any) -> TokenCall:
        return NormedCall(module.norm)
