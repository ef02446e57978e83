"""DiffRate (arXiv 2305.17997), implemented from the paper: how many tokens each block prunes and merges is learned.

Behind each attention, patch tokens are ordered by the attention that the class token pays them; the last are pruned,
of the rest the last are each merged with the most similar of those before them. Both numbers are expectations over
candidates, rounded by a straight-through estimator, and learned by the task's loss and a penalty on the MACs while
all weights stay as they are. The paper searches on ImageNet for three epochs; here it is `STEPS` batches of the
calibration images with their labels and, in its favour, a start from the even schedule of the target, half of it
pruned. Without a head, the class token's distance to the original's takes the place of the labels.

A pruned token's output is what it was when it went. In its favour attention is torch's fused one: of the maps, only the
class token's row is computed beside it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.models.forward import features

from .common import TOLERANCE, Calibration, UnreachableError, macs_of

STEPS = 200
BATCH, BATCH_TOKENS = 32, 4096
"""Images per batch at most, and tokens of a batch, about."""
RATE = 0.05
PENALTY = 100.0
"""Of the squared distance of the share of MACs: five of the paper's, which counts 10^9, for a ViT-S."""


class Rate:
    """How many patch tokens stay: an expectation over all numbers from `patches` to 1, at first about `start`."""

    def __init__(self, patches: int, start: float) -> None:
        self.candidates = torch.arange(patches, 0, -1).float()
        width = max(1.0, patches / 12)
        self.logits = (-((self.candidates - start) ** 2) / (2 * width**2)).requires_grad_()

    def kept(self) -> Tensor:
        """A whole number, with the gradient of the expectation."""
        expected = self.logits.softmax(0) @ self.candidates
        return expected.ceil().detach() - expected.detach() + expected

    def mask(self, alive: int, patches: int) -> Tensor:
        """Of each place, best first: 1 if it stays, with the gradient of the probability; beyond `alive` 1 too."""
        places = torch.arange(patches)
        stays = (self.logits.softmax(0) * (self.candidates > places[:, None])).sum(1)
        hard = ((places < int(self.kept())) | (places >= alive)).float()
        return hard - stays.detach() + stays


@dataclass
class Tokens:
    """What blocks hand on beside their tokens, the class token first.

    Attributes:
        size: tokens that each stands for `(batch, tokens)`.
        mask: while searching, 1 for tokens that are still there `(batch, tokens)`.
        alive: while searching, how many patch tokens are.
        counted: while searching, patch tokens of each block before and behind its attention.
        source: place of each original patch token's group, or -1 `(batch, patches)`.
        gone: outputs of pruned patch tokens `(batch, patches, dim)`.
    """

    size: Tensor
    mask: Tensor
    alive: int
    source: Tensor
    gone: Tensor
    counted: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Block(nn.Module):
    """timm's block with `prune` and `merge` behind its attention: numbers of patch tokens, or `Rate`s in a search."""

    def __init__(self, block: Any, patches: int, first: bool) -> None:
        super().__init__()
        self.block, self.first, self.patches = block, first, patches
        self.rates: tuple[Rate, Rate] | None = None
        self.kept = (patches, patches)
        self.shared: dict[str, Tokens] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            batch, tokens, dim = x.shape
            ones = x.new_ones(batch, tokens)
            source = torch.arange(1, tokens, device=x.device).expand(batch, -1)
            self.shared["now"] = Tokens(ones, ones, tokens - 1, source, x.new_zeros(batch, tokens - 1, dim))
        block, state = self.block, self.shared["now"]
        out, attention = self._attention(block.norm1(x), state)
        x = self._ordered(x + block.ls1(out), attention, state)
        x = self._searched(x, state) if self.rates is not None else self._reduced(x, state)
        return x + block.ls2(block.mlp(block.norm2(x)))

    def _attention(self, x: Tensor, state: Tokens) -> tuple[Tensor, Tensor]:
        """Output of the attention, and what the class token pays the others, mean over heads `(batch, patches)`."""
        attn = self.block.attn
        batch, tokens, _ = x.shape
        q, k, v = attn.qkv(x).view(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attn.q_norm(q), attn.k_norm(k)
        bias = state.size.log()[:, None, None]
        if self.rates is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(batch, 1, tokens, tokens))
            row = ((q[:, :, :1] * attn.scale) @ k.transpose(-2, -1) + bias).softmax(-1)
        else:
            scores = (q * attn.scale) @ k.transpose(-2, -1) + bias
            own = torch.eye(tokens)
            seen = state.mask[:, None, None] * (1 - own) + own
            maps = (scores - scores.amax(-1, keepdim=True).detach()).exp() * seen
            maps = maps / maps.sum(-1, keepdim=True)
            out, row = maps @ v, maps[:, :, :1]
        out = out.transpose(1, 2).flatten(2)
        return attn.proj(attn.norm(out) if hasattr(attn, "norm") else out), row[:, :, 0, 1:].mean(1)

    def _ordered(self, x: Tensor, attention: Tensor, state: Tokens) -> Tensor:
        """Patch tokens by the class token's attention, the largest first."""
        order = attention.argsort(dim=1, descending=True, stable=True) + 1
        order = torch.cat((torch.zeros_like(order[:, :1]), order), 1)
        state.size, state.mask = state.size.gather(1, order), state.mask.gather(1, order)
        places = order.argsort(dim=1)  # of each token before, its place now
        state.source = torch.where(state.source < 0, -1, places.gather(1, state.source.clamp(min=0)))
        return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))

    def _reduced(self, x: Tensor, state: Tokens) -> Tensor:
        pruned, merged = (1 + kept for kept in self.kept)
        if pruned < x.shape[1]:
            goes = state.source >= pruned
            last = x.gather(1, state.source.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
            state.gone = torch.where(goes[..., None], last, state.gone)
            state.source = torch.where(goes, -1, state.source)
            x, state.size = x[:, :pruned], state.size[:, :pruned]
        if merged < x.shape[1]:
            x, state.size, place = _merged(x, state.size, merged)
            state.source = torch.where(state.source < 0, -1, place.gather(1, state.source.clamp(min=0)))
        return x

    def _searched(self, x: Tensor, state: Tokens) -> Tensor:
        assert self.rates is not None
        prune, merge = self.rates
        before = state.counted[-1][1] if state.counted else torch.tensor(float(self.patches))
        prefix, left = x.new_ones(1), [prune.kept(), merge.kept()]
        if int(left[0]) < state.alive:
            state.mask = state.mask * torch.cat((prefix, prune.mask(state.alive, self.patches)))
            state.alive = int(left[0])
        if int(left[1]) < state.alive:
            alive, kept = 1 + state.alive, 1 + int(left[1])
            mixed, size, _ = _merged(x[:, :alive], state.size[:, :alive], kept)
            x = torch.cat((mixed, x[:, kept:]), 1)
            state.size = torch.cat((size, state.size[:, kept:]), 1)
            state.mask = state.mask * torch.cat((prefix, merge.mask(state.alive, self.patches)))
            state.alive = int(left[1])
        state.counted.append((before, torch.stack((before, *left)).min()))
        return x


def _merged(x: Tensor, size: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens from `kept` on go into the most similar one before, but for the class token; and the place of each.

    Of tokens it is the plain mean; what is merged counts in later attention by its similarity.
    """
    unit = F.normalize(x.detach(), dim=-1)
    similarity = unit[:, kept:] @ unit[:, :kept].transpose(1, 2)
    similarity[..., 0] = -torch.inf
    most, where = similarity.max(-1)
    index = where[..., None].expand(-1, -1, x.shape[-1])
    mean = x[:, :kept].scatter_reduce(1, index, x[:, kept:], "mean")
    total = size[:, :kept].scatter_add(1, where, size[:, kept:] * most)
    own = torch.arange(kept, device=x.device).expand(len(x), -1)
    return mean, total.clamp(min=1), torch.cat((own, where), 1)


class Restored(nn.Module):
    """The last LayerNorm, behind which every original patch token is in its place again where `whole`."""

    def __init__(self, norm: nn.Module, shared: dict[str, Tokens], whole: bool) -> None:
        super().__init__()
        self.norm, self.shared, self.whole = norm, shared, whole

    def forward(self, x: Tensor) -> Tensor:
        if not self.whole:
            return self.norm(x)
        state = self.shared["now"]
        if state.counted:  # a search, where all tokens are still there, in another order
            return self.norm(x)
        there = x.gather(1, state.source.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        patches = torch.where((state.source < 0)[..., None], state.gone, there)
        return self.norm(torch.cat((x[:, :1], patches), 1))


def install(model: Any) -> tuple[Any, list[Block]]:
    """A copy of a ViT whose blocks prune and merge, and those blocks; nothing is pruned yet.

    Raises:
        UnreachableError: it does not read off one class token.
    """
    if getattr(model, "num_prefix_tokens", 0) != 1 or getattr(model, "global_pool", "") != "token":
        raise UnreachableError("DiffRate needs a model that reads off its class token, and no other such token")
    found, shared = copy.deepcopy(model).eval().requires_grad_(False), dict[str, Tokens]()
    blocks = [Block(block, model.patch_embed.num_patches, place == 0) for place, block in enumerate(found.blocks)]
    for block in blocks:
        block.shared = shared
    found.blocks = nn.Sequential(*blocks)
    found.norm = Restored(found.norm, shared, whole=model.num_classes == 0)
    return found, blocks


def search(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The model with the numbers of tokens learned for a share of the MACs.

    Raises:
        UnreachableError: no such model, or the search ends elsewhere.
    """
    found, blocks = install(model)
    every = torch.tensor(float(blocks[0].patches))
    total = macs_of(model)
    beside = total - _macs(blocks, [(every, every)] * len(blocks))  # of the patch embedding and the head
    spread_over = _even(blocks, target * total - float(beside))
    for place, block in enumerate(blocks):
        left = block.patches - place * spread_over
        block.rates = Rate(block.patches, left + spread_over / 2), Rate(block.patches, left)
    parameters = [rate.logits for block in blocks for rate in block.rates or ()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, RATE / 10)
    batch = max(1, min(BATCH, BATCH_TOKENS // (blocks[0].patches + 1)))
    rows = torch.Generator().manual_seed(calibration.seed)
    for _ in range(STEPS):
        some = torch.randint(len(calibration.images), (batch,), generator=rows)
        images = calibration.images[some]
        loss = _loss(found, model, images, calibration.labels[some])
        share = (beside + _macs(blocks, blocks[0].shared["now"].counted)) / total
        (loss + PENALTY * (share - target) ** 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for block in blocks:
        assert block.rates is not None
        prune, merge = (int(rate.kept()) for rate in block.rates)
        block.kept, block.rates = (prune, merge), None
        block.shared.clear()
    reached = macs_of(found) / total
    if abs(reached - target) > TOLERANCE:
        raise UnreachableError(f"the search for {target:.2f} of the MACs ended at {reached:.2f}")
    return found


def _even(blocks: list[Block], wanted: float) -> float:
    """Tokens that go in each block but the first for so many MACs in all of them."""
    patches = float(blocks[0].patches)

    def macs(gone: float) -> float:
        left = torch.tensor([max(1.0, patches - gone * place) for place in range(len(blocks))])
        return float(_macs(blocks, [*zip(torch.cat((left[:1], left[:-1])), left, strict=True)]))

    return min((step / 8 for step in range(8 * int(patches))), key=lambda gone: abs(macs(gone) - wanted))


def _loss(found: Any, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    if found.num_classes > 0:
        return F.cross_entropy(found(images), labels)
    with torch.no_grad():
        wanted, _ = features(model, images)
    own = found.forward_head(found.forward_features(images), pre_logits=True)
    return (1 - F.cosine_similarity(own, wanted, dim=-1)).mean()


def _macs(blocks: list[Block], counted: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of all blocks, with so many patch tokens in and behind their attention."""
    total = torch.zeros(())
    for block, (before, behind) in zip(blocks, counted, strict=True):
        dim, hidden = block.block.attn.proj.out_features, block.block.mlp.fc1.out_features
        tokens = before + 1
        total = total + 4 * tokens * dim**2 + 2 * tokens**2 * dim + 2 * (behind + 1) * dim * hidden
    return total
