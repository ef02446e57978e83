"""Self-attention in which some heads hallucinate their map from another head's (hMHSA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.calls import AttentionInputs, Grid, TokenCall
from vitcompact.layers.direct import DirectAttention
from vitcompact.layers.filters import MapFilter, ValueFilter
from vitcompact.layers.layout import HeadLayout
from vitcompact.layers.masks import allowed_mean, causal_alone, logit_mask, masked_logits
from vitcompact.layers.no_projection import NoProjection
from vitcompact.layers.paired_heads import PairedHeads
from vitcompact.layers.position import Rotary
from vitcompact.layers.shared_heads import SharedHeads

torch.fx.wrap("masked_logits")  # whether there is a mask is not known while FX traces

__all__ = ["CompactAttention", "HeadLayout", "allowed_mean"]


class CompactAttention(DirectAttention):
    """Multi-head self-attention whose hallucinated heads never have a map, assembled from parts.

    A hallucinated head `g` of parent `p` has the map `A_g = alpha (A_p + beta I + gamma J)`, `J` the uniform map over
    the allowed keys and `beta`, `gamma` one number per value channel; every term is linear in the map, so it acts on V
    instead: `A_g V_g = alpha (A_p V_g + beta V_g + gamma mean(V_g))`, and one attention call serves a parent and its
    children with V side by side. Optional 3x3 filters act on the map, applied on both sides (`MapFilter`), and on every
    head's own values (`ValueFilter`).
    Source: arXiv 2306.10875, section 3.2; the commuted form is this project's.

    The path from tokens to outputs is `call` (what the block hands over), `reduction` and `norm` (fewer keys),
    projections, `q_norm`, `k_norm`, `query_pool` (fewer queries), `rotary`, logits with `position_bias`,
    `query_position_bias` and mask, softmax, V, `inner_norm`, `gate`, `proj`. What a layer does not have is None or an
    identity.

    Shapes: `(batch, tokens, dim) -> (batch, tokens, dim_out)`, or the layout that `call` knows.

    Args:
        packing: which projections share a linear layer: `("qkv",)`, `("q", "kv")`, `("q", "k", "v")`; each group is an
            attribute of that name, its rows in the order of its letters. Without a "q", `call` hands over the queries.
        biases: the letters of the projections that have a bias.
        key_heads, value_heads: where several heads share one; 0: each has its own.
        projected: whether there is an output projection.
        norm: of the reduced tokens, before keys and values.
        value_reduction: makes the tokens of the values, where they are others than the keys'.
        query_pool, key_pool, value_pool: `(x, grid) -> (x, grid)`, other ones than one a token.
        value_path: `(v, key_grid) -> (batch, queries, channels)`, added to the heads' outputs.
        residual_queries: every head's pooled queries are added to its output, so that no head's queries go.
        query_position_bias: `(q, grid, key_grid) -> (batch, maps, queries, keys)`, logits that depend on the queries.
        attributes: what the block around looks up on its attention layer.
    """

    folds_in_place = True

    def __init__(
        self,
        dim: int,
        layout: HeadLayout,
        qk_dim: int,
        v_dim: int,
        *,
        dim_out: int | None = None,
        scale: float | None = None,
        packing: tuple[str, ...] = ("qkv",),
        biases: str = "qkv",
        call: TokenCall | None = None,
        key_heads: int = 0,
        value_heads: int = 0,
        projected: bool = True,
        reduction: nn.Module | None = None,
        value_reduction: nn.Module | None = None,
        norm: nn.Module | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        query_pool: nn.Module | None = None,
        key_pool: nn.Module | None = None,
        value_pool: nn.Module | None = None,
        value_path: nn.Module | None = None,
        residual_queries: bool = False,
        rotary: Rotary | None = None,
        position_bias: nn.Module | None = None,
        query_position_bias: nn.Module | None = None,
        inner_norm: nn.Module | None = None,
        gate: bool = False,
        gate_bias: bool = True,
        attention_dropout: float = 0.0,
        output_dropout: nn.Module | None = None,
        alpha: bool = False,
        identity: bool = False,
        mean: bool = False,
        conv: bool = False,
        filter_rank: int = 0,
        num_prefix_tokens: int = 0,
        grid_size: tuple[int, int] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, shown in (attributes or {}).items():
            setattr(self, name, shown)
        self.layout, self.packing = layout, packing
        self.num_maps, self.num_heads = len(layout.maps), len(layout.heads)
        self.qk_dim, self.v_dim = qk_dim, v_dim
        self.attn_dim = self.num_heads * v_dim
        self.scale = qk_dim**-0.5 if scale is None else scale
        self.backend = "auto"

        self.call = call or TokenCall()
        self.shared = (
            SharedHeads.of(layout, key_heads or self.num_heads, value_heads or self.num_heads)
            if key_heads or value_heads
            else None
        )
        self.reduction, self.norm, self.residual_queries = reduction, norm, residual_queries
        self.value_reduction = value_reduction
        self.query_pool, self.key_pool, self.value_pool = query_pool, key_pool, value_pool
        self.value_path = value_path
        self._check_paths(identity, conv, gate, filter_rank)
        for group in packing:
            width = sum(self.width(part) for part in group)
            self.add_module(group, nn.Linear(dim, width, bias=any(part in biases for part in group)))
        self.q_norm = query_norm or nn.Identity()
        self.k_norm = key_norm or nn.Identity()
        self.rotary = rotary
        self.position_bias, self.query_position_bias = position_bias, query_position_bias
        self.attn_drop = nn.Dropout(attention_dropout)
        self.inner_norm = inner_norm or nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=gate_bias) if gate else None
        self.proj: nn.Linear | NoProjection = (
            nn.Linear(getattr(self.inner_norm, "out_features", self.attn_dim), dim_out or dim)
            if projected
            else NoProjection(layout, v_dim)
        )
        self.proj_drop = output_dropout or nn.Identity()

        children = len(layout.hallucinated)
        self.alpha = nn.Parameter(torch.ones(children)) if alpha and children else None
        self.beta = nn.Parameter(torch.zeros(self.attn_dim)) if identity else None
        self.gamma = nn.Parameter(torch.zeros(self.attn_dim)) if mean else None
        self.conv = ValueFilter(self.num_heads, num_prefix_tokens, grid_size) if conv else None
        self.filter = (
            MapFilter(layout.hallucinated, self.num_heads, v_dim, filter_rank, num_prefix_tokens, grid_size)
            if filter_rank and children
            else None
        )
        self.simple = self.is_simple()

    def _check_paths(self, identity: bool, conv: bool, gate: bool, filter_rank: int) -> None:
        if conv and gate:
            raise UsageError("a conv path cannot be solved behind a gate")
        if self.aligned:
            return
        if identity or conv:
            raise UsageError("identity and conv paths need query i to be key i, but this layer reduces its keys")
        if self.reduction is None:
            return
        if any("q" in group and len(group) > 1 for group in self.packing):
            raise UsageError(f"reduced keys cannot share a projection with the queries, got packing {self.packing}")
        if filter_rank and not self.reduction.keeps_grid:
            raise UsageError("a map filter needs keys on a grid, but this layer reduces its keys along the sequence")

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_maps={self.num_maps}, qk_dim={self.qk_dim}, v_dim={self.v_dim}"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.simple and self.is_direct((*args, *kwargs.values())):
            return self.directly(x)
        inputs = self.inputs(x, *args, **kwargs)
        q, k, v = self.project(inputs)
        out = self.inner_norm(self.mix(q, k, v, inputs))
        if self.gate is not None:
            out = out * self.gate(inputs.x).sigmoid()
        out = self.proj_drop(self.proj(self.call.restore(out, inputs)))
        return self.call.leave(out, inputs)

    def inputs(self, x: Tensor, *args: Any, **kwargs: Any) -> AttentionInputs:
        """What a call with the block's arguments means; reduced keys and the position bias are computed here."""
        inputs: AttentionInputs = self.call(x, *args, **kwargs)
        if inputs.bias is not None:
            inputs.bias = self.layout.of_maps(inputs.bias)
        if self.position_bias is not None:
            own = self.position_bias()
            inputs.bias = own if inputs.bias is None else own + inputs.bias
        inputs.key_grid = inputs.key_grid or inputs.grid
        if self.reduction is not None:
            context, inputs.key_grid = self.reduction(inputs.x, inputs.grid)
            inputs.context = context if self.norm is None else self.norm(context)
        inputs.context_grid = inputs.key_grid
        if self.value_reduction is not None:
            inputs.value_context, _ = self.value_reduction(inputs.x, inputs.grid)
        return inputs

    @property
    def aligned(self) -> bool:
        """Whether query i is key i."""
        pools = (self.query_pool, self.key_pool, self.value_pool)
        return self.reduction is None and self.call.aligned and all(pool is None for pool in pools)

    def width(self, part: str) -> int:
        """Rows that make the queries ("q"), keys ("k") or values ("v") of the stored heads."""
        if part == "q" and self.residual_queries:
            return self.num_heads * self.qk_dim
        if self.shared is not None and part != "q":
            return self.shared.values * self.v_dim if part == "v" else len(self.shared.keys) * self.qk_dim
        return self.attn_dim if part == "v" else self.num_maps * self.qk_dim

    def rows(self, part: str) -> tuple[Tensor, Tensor | None]:
        """Weight `(rows, dim)` and bias `(rows,)` or None of the queries, keys or values: views, to read and write."""
        group = next(group for group in self.packing if part in group)
        linear = self.get_submodule(group)
        assert isinstance(linear, nn.Linear)
        start = sum(self.width(before) for before in group[: group.index(part)])
        place = slice(start, start + self.width(part))
        return linear.weight[place], None if linear.bias is None else linear.bias[place]

    def project(self, inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as they meet, `(batch, maps, tokens, qk_dim)`, and values `(batch, keys, heads * v_dim)`."""
        made: dict[str, Tensor] = {}
        for group in self.packing:
            source = inputs.x if "q" in group else inputs.context
            if group == "v" and inputs.value_context is not None:
                source = inputs.value_context
            pieces = getattr(self, group)(source).split([self.width(part) for part in group], dim=-1)
            made.update({part: pieces[i] for i, part in enumerate(group)})
        if inputs.query is not None:
            made["q"] = inputs.query.unflatten(-1, (-1, self.qk_dim))[..., list(self.layout.maps), :].flatten(-2)
        q, k, v = (made[part] for part in "qkv")
        q, k = (t.unflatten(-1, (-1, self.qk_dim)).transpose(1, 2) for t in (q, k))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.shared is not None:
            k, v = self.shared.keys_of_maps(k), self.shared.values_of_heads(v)
        inputs.query_grid = inputs.grid
        if self.query_pool is not None:
            q, inputs.query_grid = self.query_pool(q, inputs.grid)
        if self.key_pool is not None:
            k, inputs.key_grid = self.key_pool(k, inputs.context_grid)
        if self.residual_queries:
            inputs.residual = q.transpose(1, 2).flatten(2)
            q = q[:, self.layout.own]
        if self.query_position_bias is not None:
            inputs.query_position_bias = self.query_position_bias(q, inputs.query_grid, inputs.key_grid)
        if self.rotary is not None and inputs.rope is not None:
            rope = self.layout.of_maps(inputs.rope)
            q, k = self.rotary(q, rope).type_as(v), self.rotary(k, rope).type_as(v)
        if self.alpha is not None:
            v = v * self._per_channel(self.alpha)
        if self.value_pool is not None:
            pooled, _ = self.value_pool(v.unflatten(-1, (-1, self.v_dim)).transpose(1, 2), inputs.context_grid)
            v = pooled.transpose(1, 2).flatten(2)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        """All heads' outputs `(batch, queries, heads * v_dim)` in stored order, before norm and gate."""
        if self.filter is None:
            out = self.attend(q, k, v, inputs)
        else:
            out = self.filter(v, lambda values: self.attend(q, k, values, inputs), inputs.query_grid, inputs.key_grid)
        out = self.beside(out, v, inputs)
        if self.beta is not None:
            out = torch.addcmul(out, v, self.beta.to(v.dtype))
        if self.gamma is not None:
            out = torch.addcmul(out, allowed_mean(v, inputs, q.shape[-2]), self.gamma.to(v.dtype))
        return out if self.conv is None else out + self.conv(v, inputs.grid)

    def beside(self, out: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        """What the layer itself adds to the heads' outputs `(batch, queries, channels)`, whatever the maps."""
        if self.value_path is not None:
            out = out + self.value_path(v, inputs.key_grid)
        return out if inputs.residual is None else out + inputs.residual

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        """`A_p V` for every value head under its map, one call for each run of equally wide maps."""
        if self.backend == "plain":
            return self._attend_plainly(q, k, v, inputs)
        return self.by_groups(q, k, v, logit_mask(inputs, q.dtype), causal_alone(inputs))

    def _attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        """The same with the maps of all heads, in the original order, through `softmax` and `attn_drop`."""
        logits = (q * self.scale) @ k.transpose(-2, -1)
        logits = masked_logits(logits, logit_mask(inputs, q.dtype), causal_alone(inputs))
        maps = self.attn_drop(logits[:, self.layout.map_of_head].softmax(dim=-1))
        values = v.unflatten(-1, (self.num_heads, self.v_dim)).transpose(1, 2)
        return (maps[:, list(self.layout.heads)] @ values).transpose(1, 2).flatten(2)

    def allowed_terms(self, terms: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the paths `identity`, `mean` and `conv` that a hallucinated map of this layer can have.

        With a norm between the heads and `proj` none is additive, and without `proj` none is solved; with reduced keys
        or queries no query is a key; a filter does not commute with a gate. Whether the model tells the grid that
        `conv` needs is not looked at.
        """
        if not isinstance(self.inner_norm, nn.Identity) or isinstance(self.proj, NoProjection):
            return ()
        terms = tuple(term for term in terms if term == "mean" or self.aligned)
        return terms if self.gate is None else tuple(term for term in terms if term != "conv")

    @property
    def paths(self) -> dict[str, bool]:
        """Which of the paths beside the softmax map there are."""
        return {"identity": self.beta is not None, "mean": self.gamma is not None, "conv": self.conv is not None}

    @property
    def solved_terms(self) -> tuple[str, ...]:
        """Those of the paths that are solved in one problem with `proj`, one number per value channel."""
        return tuple(term for term in ("identity", "mean") if self.paths[term])

    def allowed_filter(self, rank: int) -> int:
        """`rank`, or 0 where a map filter cannot be because the keys lie on no grid."""
        return rank if self.call.on_grid and (self.reduction is None or self.reduction.keeps_grid) else 0

    def set_window_size(self, size: Grid) -> None:
        """Change the window of the position bias: blocks with windows call this for another image size."""
        if self.position_bias is not None:
            self.position_bias.set_window_size((size[0], size[1]))  # type: ignore[operator]

    @property
    def rel_pos(self) -> nn.Module | None:
        """The position bias, by the name under which blocks of MaxViT look for it to resize it."""
        return self.position_bias

    def grow(self) -> None:
        """Turn the folded form into the training form in place: the same map, with an explicit `alpha` of one."""
        if self.alpha is None and self.layout.hallucinated:
            self.alpha = nn.Parameter(self.proj.weight.new_ones(len(self.layout.hallucinated)))

    @property
    def head_projection(self) -> Tensor:
        """`proj` by the head whose output it reads, `(outputs, heads * v_dim)`, whatever norm stands between."""
        weight = self.proj.weight
        return self.inner_norm.of_heads(weight) if isinstance(self.inner_norm, PairedHeads) else weight

    @property
    def fixed_qk_dim(self) -> str | None:
        """Why queries and keys cannot be narrowed by absorbing a projection into their weights, or None."""
        if self.shared is not None:
            return "keys and values are shared between heads"
        if not any("q" in group for group in self.packing):
            return "queries come from outside the layer"
        if not (isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)):
            return "queries and keys are normalised"
        if self.query_pool is not None:
            return "queries are pooled"
        if self.key_pool is not None or self.residual_queries:
            return "keys are pooled, or queries added to the outputs"
        if self.query_position_bias is not None:
            return "positions are read from the queries"
        return None if self.rotary is None else "queries and keys are rotated by their positions"

    @property
    def fixed_v_dim(self) -> str | None:
        """Why values cannot be narrowed by absorbing a projection into their weights, or None."""
        if self.shared is not None:
            return "keys and values are shared between heads"
        if isinstance(self.proj, NoProjection):
            return "there is no projection behind the heads"
        if self.gate is not None:
            return "a gate multiplies the heads' outputs"
        if not isinstance(self.inner_norm, nn.Identity):
            return "the heads' outputs are normalised"
        if self.value_pool is not None or self.value_path is not None or self.residual_queries:
            return "values are pooled, or something is added to the heads' outputs"
        return None

    @torch.no_grad()
    def load_projection(self, weight: Tensor, bias: Tensor) -> None:
        """Copy values `(outputs, heads * v_dim)` into `proj`; without one, each head's block goes into its V."""
        self.proj.bias.copy_(bias)
        if isinstance(self.proj, nn.Linear):
            self.proj.weight.copy_(weight)
            return
        blocks = self.proj.blocks(weight)
        for rows in self.rows("v"):
            if rows is not None:
                by_head = rows.double().unflatten(0, (self.num_heads, self.v_dim))
                rows.copy_(torch.einsum("hoi,hi...->ho...", blocks.to(by_head), by_head).flatten(0, 1))

    @torch.no_grad()
    def fuse(self) -> CompactAttention:
        """Fold `alpha` into V's rows and drop paths that are zero, in place; a second call does nothing.

        Where heads share V, `alpha` goes into `proj`, or into the sums of heads before it.

        Returns itself: timm's `reparameterize_model` puts what `fuse` returns in the module's place.
        """
        if self.alpha is not None:
            scale = self._per_channel(self.alpha).double()
            if isinstance(self.inner_norm, PairedHeads):
                self.inner_norm.weight.mul_(self._per_head(self.alpha))
            elif self.shared is not None:
                self.proj.weight.copy_(self.proj.weight.double() * scale)
            else:
                for rows in self.rows("v"):
                    if rows is not None:
                        rows.copy_(rows.double() * scale.view(-1, *[1] * (rows.dim() - 1)))
            self.alpha = None
        if self.beta is not None and not self.beta.is_meta and not self.beta.any():
            self.beta = None
        if self.gamma is not None and not self.gamma.is_meta and not self.gamma.any():
            self.gamma = None
        if self.conv is not None and not self.conv.weight.is_meta and not self.conv.weight.any():
            self.conv = None
        return self

    def _per_channel(self, alpha: Tensor) -> Tensor:
        """`_per_head` on every value channel."""
        return self._per_head(alpha).repeat_interleave(self.v_dim)

    def _per_head(self, alpha: Tensor) -> Tensor:
        """`alpha` of the hallucinated heads, one of the others."""
        full = torch.ones(self.num_heads, dtype=alpha.dtype, device=alpha.device)
        index = torch.tensor(self.layout.hallucinated, device=alpha.device)
        return full.index_put((index,), alpha)
