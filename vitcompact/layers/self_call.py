"""The calling convention of torch.nn.MultiheadAttention, for layers that attend to their own tokens."""

from __future__ import annotations

from torch import Tensor

from vitcompact.errors import UsageError
from vitcompact.layers.calls import AttentionInputs, TokenCall


class SelfAttentionCall(TokenCall):
    """`forward(x, x, x, ...)` on `(batch, tokens, dim)`, which returns the tokens and None: no maps."""

    on_grid = False

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> AttentionInputs:
        """Masks are those of `MultiheadAttention`: True forbids. Maps are not returned, whatever is asked for.

        Raises:
            UsageError: the keys or values are other tokens than the queries.
        """
        if key is not query or value is not query:
            raise UsageError("this layer attends to other tokens than its own, which no compacted layer does")
        mask = None if attn_mask is None else _additive(attn_mask, query)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (query.shape[0], -1))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query)[:, None, None]
            mask = padding if mask is None else mask + padding
        return AttentionInputs(query, mask=mask)

    def leave(self, out: Tensor, inputs: AttentionInputs) -> tuple[Tensor, None]:  # type: ignore[override]
        return out, None


def _additive(mask: Tensor, x: Tensor) -> Tensor:
    """A mask in which True forbids as one that is added to logits."""
    if mask.dtype != x.dtype and not mask.is_floating_point():
        return x.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
    return mask
