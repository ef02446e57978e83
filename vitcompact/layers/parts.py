"""What an attention layer is made of, handed from a family's adapter to the attention core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vitcompact.layers.calls import TokenCall
from vitcompact.layers.position import Rotary


@dataclass
class AttentionParts:
    """The parts of one multi-head self-attention layer, views of the original's own tensors.

    A module with values of its own for each head (a bias table, temperatures) has `keep_heads(heads)`, which leaves it
    with those of some heads, in that order.

    Attributes:
        num_heads: softmax maps of the layer.
        query, key: weights `(num_heads * qk_dim, dim)`.
        value: weight `(num_heads * v_dim, dim)`.
        query_bias, key_bias, value_bias: their biases, or None.
        scale: factor of the logits.
        proj_weight, proj_bias: output projection `(dim_out, num_heads * v_dim)`, or None where there is none; and its
            bias or None.
        training: whether the layer is in training mode.
        attention_dropout: probability with which an entry of a map is dropped in training.
        output_dropout: module after `proj`.
        packing: which projections the core keeps in one linear layer (see `CompactAttention`).
        call: the calling convention of the blocks around the layer.
        reduction: makes fewer keys and values than queries, or None.
        key_heads, value_heads: heads of `key` and of `value` where several heads share one; 0: as many as `num_heads`.
        value_reduction: makes the tokens of the values, where `reduction` makes those of the keys only; or None.
        reduced_norm: normalisation of the reduced tokens, over the last axis, or None.
        query_norm, key_norm: normalisation over `qk_dim` (`nn.Identity` where there is none).
        query_pool, key_pool, value_pool: make fewer of them than tokens, or None.
        value_path: adds something made from the values to the heads' outputs, or None.
        residual_queries: each head's queries are added to its output.
        rotary: rotary embedding of queries and keys, or None.
        position_bias: what is added to each map's logits, or None.
        query_position_bias: what is added to each map's logits and depends on the queries, or None.
        inner_norm: normalisation of the concatenated heads before `proj` (`nn.Identity` where there is none).
        gate: linear layer whose sigmoid multiplies the concatenated heads, or None.
        attributes: what the block around looks up on its attention layer, by name.
    """

    num_heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    scale: float
    proj_weight: Tensor | None
    proj_bias: Tensor | None
    training: bool
    attention_dropout: float
    output_dropout: nn.Module
    packing: tuple[str, ...] = ("qkv",)
    call: TokenCall = field(default_factory=TokenCall)
    reduction: nn.Module | None = None
    key_heads: int = 0
    value_heads: int = 0
    value_reduction: nn.Module | None = None
    reduced_norm: nn.Module | None = None
    query_norm: nn.Module = field(default_factory=nn.Identity)
    key_norm: nn.Module = field(default_factory=nn.Identity)
    query_pool: nn.Module | None = None
    key_pool: nn.Module | None = None
    value_pool: nn.Module | None = None
    value_path: nn.Module | None = None
    residual_queries: bool = False
    rotary: Rotary | None = None
    position_bias: nn.Module | None = None
    query_position_bias: nn.Module | None = None
    inner_norm: nn.Module = field(default_factory=nn.Identity)
    gate: nn.Linear | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def qk_dim(self) -> int:
        """Width of one head's query."""
        return self.query.shape[0] // self.num_heads

    @property
    def v_dim(self) -> int:
        """Width of one head's value."""
        return self.value.shape[0] // (self.value_heads or self.num_heads)

    @property
    def key_of_each_head(self) -> Tensor:
        """Key weights `(num_heads, qk_dim, dim)`, shared ones once for each head that reads them."""
        keys = self.key.unflatten(0, (-1, self.qk_dim))
        return keys.repeat_interleave(self.num_heads // keys.shape[0], dim=0)

    @property
    def dim_out(self) -> int:
        """Width of the layer's output."""
        return self.num_heads * self.v_dim if self.proj_weight is None else self.proj_weight.shape[0]

    @property
    def dim(self) -> int:
        """Width of the layer's input."""
        return self.query.shape[1]
