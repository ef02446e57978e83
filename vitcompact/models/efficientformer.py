"""Attention with downsampling of EfficientFormerV2 (timm/models/efficientformer_v2.py)."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.efficientformer_v2 import Attention2dDownsample
from torch import Tensor, nn

from vitcompact.layers.grid_calls import SubsampledCall
from vitcompact.layers.parts import AttentionParts
from vitcompact.layers.pointwise import normed
from vitcompact.layers.reduction import StridedValuePath
from vitcompact.models.base import AttentionFamily
from vitcompact.models.bias_tables import fixed_bias
from vitcompact.models.projections import around, separate


class EfficientFormerDownsampling(AttentionFamily):
    """Queries from every other row and column, values wider than keys and convolved beside, an activation behind."""

    name = "efficientformer-v2-downsample"
    attention = Attention2dDownsample
    known_parts = frozenset({"q", "k", "v", "v_local", "act", "proj", "attention_biases", "attention_bias_idxs"})
    channel_dim = 1

    def parts(self, module: Any) -> AttentionParts:
        return AttentionParts(
            **around(module, module.proj),
            **separate(module.q.proj, module.k, module.v),
            call=SubsampledCall(_LocalAndGlobal(module.q.local, module.q.pool), None, 2),
            position_bias=fixed_bias(module.attention_biases, module.attention_bias_idxs),
            value_path=StridedValuePath(_folded(module.v_local), int(module.num_heads)),
            inner_norm=module.act,
        )


class _LocalAndGlobal(nn.Module):
    """A strided convolution and a strided choice of the same feature map, added."""

    def __init__(self, local: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.local, self.pool = local, pool

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local(x) + self.pool(x)
        return out


@torch.no_grad()
def _folded(pair: Any) -> nn.Conv2d:
    """A convolution with the batch norm behind it."""
    old = pair.conv
    new = nn.Conv2d(
        *(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups),
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    weight, bias = normed(old.weight.flatten(1), old.bias, pair.bn)
    new.weight.copy_(weight.reshape(new.weight.shape))
    assert new.bias is not None
    new.bias.copy_(bias)
    return new
