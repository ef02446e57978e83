"""Token merging: similar tokens become one, block by block (ToMe, arXiv 2210.09461), without any training.

The patch tokens of a sequence are dealt in turn to two sets A and B. Every token of A finds its nearest token of B, and
the `r` nearest pairs become their mean, weighted by how many original tokens each stands for (the paper's section 3.2).
Prefix tokens (class, distillation, registers) are left alone. What is near: `match_keys` is the paper's, `match_tokens`
what loses less, with a metric of what matters to the output still less (docs/method.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Match:
    """One step of merging: which tokens of set A go into which tokens of set B.

    Attributes:
        num_prefix_tokens: tokens at the front that take no part.
        kept: positions in A of the tokens that stay, ascending, `(batch, len(A) - r)`.
        merged: positions in A of those that go, the nearest pair first, `(batch, r)`.
        target: positions in B that they go to, `(batch, r)`.
    """

    num_prefix_tokens: int
    kept: Tensor
    merged: Tensor
    target: Tensor

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix, A and B of anything with tokens on axis 1."""
        first = self.num_prefix_tokens
        return x[:, :first], x[:, first::2], x[:, first + 1 :: 2]


@dataclass(frozen=True)
class Groups:
    """What the tokens of a merged sequence stand for.

    Attributes:
        size: how many original tokens each is the mean of, float32 `(batch, tokens)`.
        source: for each original token, the position of the token it is part of, int64 `(batch, original tokens)`.
    """

    size: Tensor
    source: Tensor

    @classmethod
    def single(cls, x: Tensor) -> Groups:
        """Every token of `x (batch, tokens, dim)` on its own."""
        batch, tokens, _ = x.shape
        size = torch.ones(batch, tokens, dtype=torch.float32, device=x.device)
        return cls(size, torch.arange(tokens, device=x.device).expand(batch, tokens))

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What is added to the logits so that a key counts as often as it has sources, `(batch, 1, 1, tokens)`.

        `softmax(s + log size)` over merged keys equals the softmax over all of them where the merged ones are equal
        (the paper's equation 1).
        """
        return self.size.log().to(dtype)[:, None, None]

    def expand(self, x: Tensor) -> Tensor:
        """Each original token's share of `x (batch, tokens, dim)`: `(batch, original tokens, dim)`."""
        return take(x, self.source)

    def compress(self, x: Tensor) -> Tensor:
        """One token for each group out of `x (batch, original tokens, dim)`; the inverse of `expand`."""
        batch, originals = self.source.shape
        positions = torch.arange(originals, device=x.device).expand(batch, originals)
        member = positions.new_zeros(self.size.shape).scatter(1, self.source, positions)
        return take(x, member)


def take(x: Tensor, index: Tensor) -> Tensor:
    """`x (batch, tokens, ...)` at positions `index (batch, chosen)` of axis 1."""
    shape = (*index.shape, *x.shape[2:])
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(shape))


@torch.no_grad()
def match_keys(keys: Tensor, r: int, num_prefix_tokens: int) -> Match:
    """Bipartite soft matching by the cosine of keys: the paper's.

    Args:
        keys: `(batch, tokens, dim)`.
        r: pairs to merge, at most half of the tokens that are not prefix.
    """
    metric = F.normalize(keys[:, num_prefix_tokens:], dim=-1)
    return _matched(metric[:, ::2] @ metric[:, 1::2].transpose(1, 2), r, num_prefix_tokens)


@torch.no_grad()
def match_tokens(x: Tensor, size: Tensor | None, r: int, num_prefix_tokens: int, metric: Tensor | None = None) -> Match:
    """Bipartite soft matching by what merging does to the tokens themselves, as Ward's clustering does.

    Two tokens of unit length that stand for `m` and `n` original ones are moved by `mn / (m + n) |a - b|^2` in all.
    Computed in float32: cosines of tokens are close to one, where half precision has no digits left.

    Args:
        x: the tokens as they are to be merged, `(batch, tokens, dim)`.
        size: how many original tokens each stands for, `(batch, tokens)`; None: each for itself.
        r: pairs to merge, at most half of the tokens that are not prefix.
        metric: `(dim, rank)`; what is compared is `x @ metric`. None compares all channels alike.
    """
    x = x[:, num_prefix_tokens:].float()
    with _whole_digits(x.device.type):
        x = x if metric is None else x @ metric.float()
        scale = torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-12).reciprocal()
        products = x[:, ::2] @ x[:, 1::2].transpose(1, 2)
    kept = products * scale[:, ::2, None] * scale[:, None, 1::2] - 1  # -|a - b|^2 / 2
    if size is not None:
        rarity = size[:, num_prefix_tokens:].reciprocal()
        kept = kept / (rarity[:, ::2, None] + rarity[:, None, 1::2])
    return _matched(kept, r, num_prefix_tokens)


def _whole_digits(device: str) -> AbstractContextManager[object]:
    """Products of float32 in float32, also where autocast would make them half precision."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def _matched(similarity: Tensor, r: int, num_prefix_tokens: int) -> Match:
    """The `r` most similar pairs of `similarity (batch, len(A), len(B))`, each of A with its best of B."""
    best, partner = similarity.max(dim=-1)
    order = _ranked(best)
    merged, kept = order[:, :r], order[:, r:].sort(dim=-1).values
    return Match(num_prefix_tokens, kept, merged, partner.gather(1, merged))


def _ranked(similarity: Tensor) -> Tensor:
    """Positions along the last axis, the largest first; of equals the first first.

    ONNX has no stable sort, but its TopK puts the lower index first among equals.
    """
    if torch.onnx.is_in_onnx_export():
        return similarity.topk(similarity.shape[-1], dim=-1).indices
    return similarity.argsort(dim=-1, descending=True, stable=True)


def merge_tokens(x: Tensor, groups: Groups, match: Match) -> tuple[Tensor, Groups]:
    """Merge once: `x (batch, tokens, dim) -> (batch, tokens - r, dim)`, in the order prefix, rest of A, B."""
    prefix, a, b = match.split(x)
    prefix_size, a_size, b_size = match.split(groups.size)
    target = match.target[..., None].expand(-1, -1, x.shape[-1])
    moved_size = a_size.gather(1, match.merged)
    size = b_size.scatter_add(1, match.target, moved_size)
    total = (b * b_size[..., None]).scatter_add(1, target, take(a, match.merged) * moved_size[..., None])
    mean = (total / size[..., None]).to(x.dtype)
    tokens = torch.cat((prefix, take(a, match.kept), mean), dim=1)
    sizes = torch.cat((prefix_size, a_size.gather(1, match.kept), size), dim=1)
    return tokens, Groups(sizes, _moved(match, groups.size).gather(1, groups.source))


def _moved(match: Match, like: Tensor) -> Tensor:
    """Where each token is after merging: `like (batch, tokens)` gives the shape before."""
    place = torch.arange(like.shape[1], device=like.device).repeat(like.shape[0], 1)
    prefix, a, b = match.split(place)
    first = match.num_prefix_tokens + match.kept.shape[1]
    count = torch.arange(match.num_prefix_tokens, first, device=like.device).expand_as(match.kept)
    a = a.scatter(1, match.kept, count).scatter(1, match.merged, first + match.target)
    b = torch.arange(first, first + b.shape[1], device=like.device).expand_as(b)
    longer = torch.stack((a[:, : b.shape[1]], b), dim=2).flatten(1)  # A has one more where their number is odd
    return torch.cat((prefix, longer, a[:, b.shape[1] :]), dim=1)
