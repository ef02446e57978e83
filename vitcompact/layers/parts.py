"""What an attention layer is made of, handed from a family's adapter to the attention core."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class AttentionParts:
    """The parts of one multi-head self-attention layer, views of the original's own tensors.

    Attributes:
        num_heads: softmax maps of the layer.
        query, key: weights `(num_heads * qk_dim, dim)`.
        value: weight `(num_heads * v_dim, dim)`.
        query_bias, key_bias, value_bias: their biases, or None.
        scale: factor of the logits.
        query_norm, key_norm: normalisation over `qk_dim`, shared by all heads (`nn.Identity` where there is none).
        inner_norm: normalisation of the concatenated heads before `proj` (`nn.Identity` where there is none).
        gate: linear layer whose sigmoid multiplies the concatenated heads, or None.
        proj: output projection `(dim_out, num_heads * v_dim)`.
        attention_dropout: probability with which an entry of a map is dropped in training.
        output_dropout: module after `proj`.
    """

    num_heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    scale: float
    query_norm: nn.Module
    key_norm: nn.Module
    inner_norm: nn.Module
    gate: nn.Linear | None
    proj: nn.Linear
    attention_dropout: float
    output_dropout: nn.Module

    @property
    def qk_dim(self) -> int:
        """Width of one head's query."""
        return self.query.shape[0] // self.num_heads

    @property
    def v_dim(self) -> int:
        """Width of one head's value."""
        return self.value.shape[0] // self.num_heads

    @property
    def dim(self) -> int:
        """Width of the layer's input."""
        return self.query.shape[1]
