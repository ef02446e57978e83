"""The heart of an attention layer, and the direct way to it where the layer has nothing else, as most folded ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.fx
from torch import Tensor, nn

from vitcompact.layers.backends import attend
from vitcompact.layers.calls import TokenCall
from vitcompact.layers.filters import MapFilter, ValueFilter
from vitcompact.layers.layout import HeadLayout
from vitcompact.layers.masks import part_of_mask
from vitcompact.layers.no_projection import NoProjection

# Lengths, and whether there is a mask, are not known while FX traces.
for _name in ("attend", "part_of_mask"):
    torch.fx.wrap(_name)

_ABSENT = (
    "shared",
    "reduction",
    "value_reduction",
    "norm",
    "query_pool",
    "key_pool",
    "value_pool",
    "value_path",
    "rotary",
    "position_bias",
    "query_position_bias",
    "gate",
)
_PASSED = ("q_norm", "k_norm", "inner_norm")
UNHEARD = (*_PASSED, "attn_drop", "proj_drop")
"""Modules that the direct way does not run."""


class DirectAttention(nn.Module):
    """An attention layer that, where it is one packed projection, maps, values and `proj`, does nothing but these.

    What a layer may have besides (norms, pools, positions, paths, a gate) takes a few microseconds each to find absent:
    in all as long as a small layer itself needs for an image.
    """

    layout: HeadLayout
    packing: tuple[str, ...]
    num_maps: int
    qk_dim: int
    v_dim: int
    attn_dim: int
    scale: float
    backend: str
    residual_queries: bool
    call: TokenCall
    attn_drop: nn.Dropout
    alpha: nn.Parameter | None
    beta: nn.Parameter | None
    gamma: nn.Parameter | None
    conv: ValueFilter | None
    filter: MapFilter | None
    proj: nn.Linear | NoProjection

    def is_simple(self) -> bool:
        """Whether a new layer has none of the parts that the direct way leaves out."""
        parts = all(getattr(self, name) is None for name in _ABSENT) and not self.residual_queries
        usual = type(self.call) is TokenCall and self.packing == ("qkv",) and type(self.proj) is nn.Linear
        return parts and usual and all(type(getattr(self, name)) is nn.Identity for name in _PASSED)

    def is_direct(self, given: Iterable[object]) -> bool:
        """Whether a call of a simple layer, with so many things besides the tokens, can go the direct way.

        Not where something is trained, shown, or listened to that this way does not pass.
        """
        modules = self._modules
        return not (
            self.training
            or self.alpha is not None
            or self.gamma is not None
            or self.conv is not None
            or self.filter is not None
            or self.backend == "plain"
            or any(each is not None and each is not False for each in given)
            or any(part._forward_hooks or part._forward_pre_hooks for name in UNHEARD if (part := modules[name]))
        )

    def directly(self, x: Tensor) -> Tensor:
        """`(batch, tokens, dim) -> (batch, tokens, dim_out)`."""
        batch, tokens, _ = x.shape
        width, packed = self.num_maps * self.qk_dim, self._modules["qkv"]
        assert packed is not None
        q, k, v = packed(x).split((width, width, self.attn_dim), dim=-1)
        q = q.reshape(batch, tokens, self.num_maps, self.qk_dim).transpose(1, 2)
        k = k.reshape(batch, tokens, self.num_maps, self.qk_dim).transpose(1, 2)
        out = self.by_groups(q, k, v, None, False)
        if self.beta is not None:
            out = torch.addcmul(out, v, self.beta.to(v.dtype))
        projected: Tensor = self.proj(out)
        return projected

    def by_groups(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """`attend` with the mask of all maps at hand."""
        batch, keys, _ = v.shape
        dropout = self.attn_drop.p if self.training else 0.0
        groups, outs, first, start = self.layout.groups, [], 0, 0
        for count, heads in groups:
            width = heads * self.v_dim
            maps, values = slice(first, first + count), v[..., start : start + count * width]
            values = values.reshape(batch, keys, count, width).transpose(1, 2)
            queries, keys_ = (q, k) if len(groups) == 1 else (q[:, maps], k[:, maps])
            part, scale = part_of_mask(mask, first, count), self.scale
            out = attend(self.backend, queries, keys_, values, scale=scale, mask=part, causal=causal, dropout=dropout)
            outs.append(out.transpose(1, 2).reshape(batch, q.shape[-2], count * width))
            first, start = first + count, start + count * width
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)
