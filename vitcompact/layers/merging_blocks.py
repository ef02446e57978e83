"""Pre-norm transformer blocks that merge tokens between attention and FFN, and the trunk made of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from vitcompact.errors import UsageError
from vitcompact.layers.merge import Groups, Match, match_keys, match_tokens, merge_tokens

PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
"""Children of a pre-norm block; a merging block has the same ones, so the names of its tensors stay."""

METRIC_RANK = 64
"""Directions of a token that are compared by output sensitivity: those that matter most."""

MergeBy = Literal["sensitivity", "tokens", "keys"]
"""What tokens to merge are compared by: themselves, weighted by output sensitivity or not, or the keys of the attention
before them as in the paper."""

_GROUPS = "vitcompact_groups"


class KeyTap:
    """Forward hook of an attention layer's key norm that keeps the mean of the keys over heads, where it is wanted.

    Attention is left as it is: whatever normalises, thins or shares its keys has happened by then.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._keys: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, keys: Tensor) -> None:
        """`keys`: (batch, heads, tokens, dim)."""
        if self.wanted:
            self._keys = keys.detach().mean(dim=1)  # only a choice is made by them: no gradient

    def take(self) -> Tensor:
        """The keys `(batch, tokens, dim)` of the last call, once.

        Raises:
            UsageError: attention did not pass through its key norm.
        """
        keys, self._keys, self.wanted = self._keys, None, False
        if keys is None:
            raise UsageError("token merging: this attention layer does not run its keys through k_norm")
        return keys


def _refuse_tracing(x: object) -> None:
    """FX takes a model apart without knowing how many tokens there are, and they decide how many merge."""
    if isinstance(x, Proxy):
        raise UsageError(
            "token merging: FX cannot trace this model; hook its blocks, call forward_intermediates, use torch.export,"
            " or fold it again with merge_tokens=0"
        )


class MergingBlock(nn.Module):
    """`x + attention(x)`, then `r` pairs of tokens merged, then `x + ffn(x)`: the parts are a plain block's own.

    Called by itself it takes and gives sequences of full length, in which merged tokens are repeated; what was merged
    travels along on the tensor. Within `MergingBlocks` the short sequences are handed on.

    Args:
        parts: the modules named in `PARTS`.
        num_prefix_tokens: tokens at the front that are never merged.

    Attributes:
        r: pairs of tokens to merge; fewer where less than twice as many tokens are left.
        by: what tokens are compared by.
        metric: `(dim, METRIC_RANK or dim)`, through which tokens are compared by output sensitivity, zeros until it is
            set; None where they are not.
    """

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module
    metric: Tensor | None

    def __init__(self, parts: dict[str, nn.Module], num_prefix_tokens: int) -> None:
        super().__init__()
        for name in PARTS:
            setattr(self, name, parts[name])
        self.r, self.num_prefix_tokens = 0, num_prefix_tokens
        self.by: MergeBy = "tokens"
        self.register_buffer("metric", None)
        self._tap = KeyTap()
        self.attn.get_submodule("k_norm").register_forward_hook(self._tap)

    def merge(self, r: int, by: MergeBy, dim: int) -> None:
        """Merge `r` pairs of tokens `(batch, tokens, dim)` from now on; a metric that is there and wanted stays."""
        self.r, self.by = r, by
        if by != "sensitivity" or r == 0:
            self.metric = None
        elif self.metric is None:
            like = next(self.parameters())
            self.metric = torch.zeros(dim, min(dim, METRIC_RANK), dtype=like.dtype, device=like.device)

    def extra_repr(self) -> str:
        return f"r={self.r}, num_prefix_tokens={self.num_prefix_tokens}, by={self.by}"

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        _refuse_tracing(x)
        if attn_mask is not None or is_causal:
            raise UsageError("token merging does not work with attention masks: fold again with merge_tokens=0")
        groups: Groups | None = getattr(x, _GROUPS, None)
        tokens, groups = self.step(x if groups is None else groups.compress(x), groups)
        if groups is None:
            return tokens
        out = groups.expand(tokens)
        setattr(out, _GROUPS, groups)
        return out

    def step(self, x: Tensor, groups: Groups | None) -> tuple[Tensor, Groups | None]:
        """One block on a merged sequence `(batch, tokens, dim)`; `groups` is None while nothing was merged."""
        r = min(self.r, (x.shape[1] - self.num_prefix_tokens) // 2)
        self._tap.wanted = r > 0 and self.by == "keys"
        bias = None if groups is None else groups.bias(x.dtype)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=bias)))
        if r > 0:
            match = self._match(x, groups, r)
            x, groups = merge_tokens(x, Groups.single(x) if groups is None else groups, match)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), groups

    def _match(self, x: Tensor, groups: Groups | None, r: int) -> Match:
        if self.by == "keys":
            return match_keys(self._tap.take(), r, self.num_prefix_tokens)
        return match_tokens(x, None if groups is None else groups.size, r, self.num_prefix_tokens, self.metric)

    @property
    def is_watched(self) -> bool:
        """Whether somebody hooked onto this very block and expects its full-length output."""
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)


class MergingBlocks(nn.Sequential):
    """A trunk of merging blocks: `(batch, tokens, dim)` of full length in and out, short in between.

    The merged tokens come back as copies of their mean, so that pooling, patch features and heads see what they
    expect; a mean over them is the weighted mean of the merged ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        _refuse_tracing(x)
        blocks = list(self.children())
        if not all(isinstance(block, MergingBlock) and not block.is_watched for block in blocks):
            out: Tensor = super().forward(x)
            return out
        groups: Groups | None = None
        for block in blocks:
            assert isinstance(block, MergingBlock)
            x, groups = block.step(x, groups)
        return x if groups is None else groups.expand(x)
