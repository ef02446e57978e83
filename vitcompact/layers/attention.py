"""Self-attention in which some heads hallucinate their map from another head's (hMHSA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.backends import BACKENDS, choose
from vitcompact.layers.filters import MapFilter


@dataclass(frozen=True)
class HeadLayout:
    """How value heads are stored: each map's own value head, then those of the heads hallucinated from it.

    Attributes:
        maps: original indices of the heads that compute a softmax map, most children first.
        children: per map, the original indices of the heads hallucinated from it.
    """

    maps: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]

    @property
    def heads(self) -> tuple[int, ...]:
        """Original index of every value head in stored order."""
        return tuple(head for own, rest in zip(self.maps, self.children, strict=True) for head in (own, *rest))

    @property
    def hallucinated(self) -> tuple[int, ...]:
        """Positions (in stored order) of the hallucinated value heads."""
        flags = [head in self.maps for head in self.heads]
        return tuple(i for i, kept in enumerate(flags) if not kept)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Runs of `(number of maps, value heads per map)`: one attention call each."""
        runs: list[list[int]] = []
        for rest in self.children:
            if runs and runs[-1][1] == 1 + len(rest):
                runs[-1][0] += 1
            else:
                runs.append([1, 1 + len(rest)])
        return tuple((count, width) for count, width in runs)


class CompactAttention(nn.Module):
    """Multi-head self-attention whose hallucinated heads never have a map.

    A hallucinated head `g` of parent `p` has the map `A_g = alpha (A_p + beta I + gamma J)`, `J` the uniform map over
    the allowed keys and `beta`, `gamma` one number per value channel; every term is linear in the map, so it acts on V
    instead: `A_g V_g = alpha (A_p V_g + beta V_g + gamma mean(V_g))`, and one attention call serves a parent and its
    children with V side by side. An optional 3x3 map filter is applied on both sides (`MapFilter`).
    Source: arXiv 2306.10875, section 3.2; the commuted form is this project's.

    Shapes: `(batch, tokens, dim) -> (batch, tokens, dim_out)`.
    """

    def __init__(
        self,
        dim: int,
        layout: HeadLayout,
        qk_dim: int,
        v_dim: int,
        *,
        dim_out: int | None = None,
        scale: float | None = None,
        qkv_bias: bool = True,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        inner_norm: nn.Module | None = None,
        gate: bool = False,
        gate_bias: bool = True,
        attention_dropout: float = 0.0,
        output_dropout: nn.Module | None = None,
        alpha: bool = False,
        identity: bool = False,
        mean: bool = False,
        filter_rank: int = 0,
        num_prefix_tokens: int = 0,
        grid_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.num_maps, self.num_heads = len(layout.maps), len(layout.heads)
        self.qk_dim, self.v_dim = qk_dim, v_dim
        self.attn_dim = self.num_heads * v_dim
        self.scale = qk_dim**-0.5 if scale is None else scale
        self.backend = "auto"

        self.qkv = nn.Linear(dim, 2 * self.num_maps * qk_dim + self.attn_dim, bias=qkv_bias)
        self.q_norm = query_norm or nn.Identity()
        self.k_norm = key_norm or nn.Identity()
        self.attn_drop = nn.Dropout(attention_dropout)
        self.norm = inner_norm or nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=gate_bias) if gate else None
        self.proj = nn.Linear(self.attn_dim, dim_out or dim)
        self.proj_drop = output_dropout or nn.Identity()

        children = len(layout.hallucinated)
        self.alpha = nn.Parameter(torch.ones(children)) if alpha and children else None
        self.beta = nn.Parameter(torch.zeros(self.attn_dim)) if identity else None
        self.gamma = nn.Parameter(torch.zeros(self.attn_dim)) if mean else None
        self.filter = (
            MapFilter(layout.hallucinated, self.num_heads, v_dim, filter_rank, num_prefix_tokens, grid_size)
            if filter_rank and children
            else None
        )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_maps={self.num_maps}, qk_dim={self.qk_dim}, v_dim={self.v_dim}"

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self.project(x)
        out = self.mix(q, k, v, attn_mask, is_causal)
        out = self.norm(out)
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        result: Tensor = self.proj_drop(self.proj(out))
        return result

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries and keys `(batch, maps, tokens, qk_dim)` and values `(batch, tokens, heads * v_dim)`."""
        batch, tokens, _ = x.shape
        width = self.num_maps * self.qk_dim
        q, k, v = self.qkv(x).split((width, width, self.attn_dim), dim=-1)
        q, k = (t.view(batch, tokens, self.num_maps, self.qk_dim).transpose(1, 2) for t in (q, k))
        if self.alpha is not None:
            v = v * self._per_channel(self.alpha)
        return self.q_norm(q), self.k_norm(k), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """All heads' outputs `(batch, tokens, heads * v_dim)` in stored order, before norm and gate."""
        if self.filter is None:
            out = self.attend(q, k, v, mask, causal)
        else:
            out = self.filter(v, lambda values: self.attend(q, k, values, mask, causal))
        if self.beta is not None:
            out = torch.addcmul(out, v, self.beta.to(v.dtype))
        if self.gamma is not None:
            out = torch.addcmul(out, allowed_mean(v, mask, causal), self.gamma.to(v.dtype))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """`A_p V` for every value head under its map, one call for each run of equally wide maps."""
        batch, keys, _ = v.shape
        dropout = self.attn_drop.p if self.training else 0.0
        outs, first, start = [], 0, 0
        for count, heads in self.layout.groups:
            width = heads * self.v_dim
            values = v[..., start : start + count * width].reshape(batch, keys, count, width).transpose(1, 2)
            queries, keys_ = q[:, first : first + count], k[:, first : first + count]
            group_mask = mask[:, first : first + count] if mask is not None and _per_head(mask) else mask
            run = BACKENDS[choose(queries, values) if self.backend == "auto" else self.backend]
            out = run(queries, keys_, values, scale=self.scale, mask=group_mask, causal=causal, dropout=dropout)
            outs.append(out.transpose(1, 2).reshape(batch, q.shape[-2], count * width))
            first, start = first + count, start + count * width
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)

    def grow(self) -> None:
        """Turn the folded form into the training form in place: the same map, with an explicit `alpha` of one."""
        if self.alpha is None and self.layout.hallucinated:
            self.alpha = nn.Parameter(self.qkv.weight.new_ones(len(self.layout.hallucinated)))

    @torch.no_grad()
    def fuse(self) -> CompactAttention:
        """Fold `alpha` into V's rows and drop paths that are zero, in place; a second call does nothing.

        Returns itself: timm's `reparameterize_model` puts what `fuse` returns in the module's place.
        """
        if self.alpha is not None:
            scale = self._per_channel(self.alpha).double()
            rows = slice(2 * self.num_maps * self.qk_dim, None)
            for parameter in self.qkv.parameters():
                values = parameter[rows].double()
                parameter[rows] = values * scale.view(-1, *[1] * (values.dim() - 1))
            self.alpha = None
        if self.beta is not None and not self.beta.is_meta and not self.beta.any():
            self.beta = None
        if self.gamma is not None and not self.gamma.is_meta and not self.gamma.any():
            self.gamma = None
        return self

    def _per_channel(self, alpha: Tensor) -> Tensor:
        """`alpha` of the hallucinated heads, one of the others, on every value channel."""
        full = torch.ones(self.num_heads, dtype=alpha.dtype, device=alpha.device)
        index = torch.tensor(self.layout.hallucinated, device=alpha.device)
        return full.index_put((index,), alpha).repeat_interleave(self.v_dim)


def _per_head(mask: Tensor) -> bool:
    return mask.dim() == 4 and mask.shape[1] > 1


def allowed_mean(v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Mean of `v (batch, keys, channels)` over the keys each query may see: the map `J`, row-normalised.

    A boolean mask allows where it is True; an additive one weighs keys as it does at equal logits, which is even over
    the keys allowed, and by size over merged tokens. Masks that differ between heads have no single `J`.

    Raises:
        UsageError: the mask differs between heads.
    """
    if causal:
        count = torch.arange(1, v.shape[1] + 1, device=v.device, dtype=v.dtype)
        return v.cumsum(dim=1) / count[:, None]
    if mask is None:
        return v.mean(dim=1, keepdim=True).expand_as(v)
    if _per_head(mask):
        raise UsageError("the mean path of a hallucinated map needs one attention mask for all heads")
    mask = mask[:, 0] if mask.dim() == 4 else mask
    if mask.dtype != torch.bool:
        return mask.softmax(dim=-1).to(v.dtype) @ v
    weights = mask.to(v.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)
    return weights @ v
