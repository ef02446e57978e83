"""Switching token merging on in a plain ViT, converted or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import processes_of
from vitcompact.errors import UsageError
from vitcompact.layers.merging_blocks import METRIC_RANK, PARTS, MergingBlock, MergingBlocks
from vitcompact.models import inspect
from vitcompact.models.plain_vit import plain_trunk
from vitcompact.operators.base import ModelOperator
from vitcompact.options.selection import MergeTokens
from vitcompact.plans.schema import MergeBy, Plan


class TokenMerging(ModelOperator):
    """Similar tokens of a plain ViT become one, block by block."""

    name = "merge tokens"
    title = "merged tokens"
    description = "similar tokens are merged, block by block"
    source = "arXiv 2210.09461 (ToMe), tokens matched otherwise (docs/method.md)"

    def label(self, plan: Plan) -> str | None:
        """Such as `96 pairs of tokens, 8 per block`."""
        return schedule_text(plan.merge_tokens) if plan.merge_tokens else None

    def install(self, model: nn.Module, plan: Plan) -> None:
        """See `ModelOperator.install`."""
        if plan.merge_tokens:
            install_merging(model, plan.merge_tokens, plan.merge_by)

    def solve(self, model: nn.Module, plan: Plan, known: OutputSensitivity | None) -> None:
        """See `ModelOperator.solve`."""
        if not plan.merge_tokens or plan.merge_by != "sensitivity":
            return
        metrics = None if known is None else token_metrics(known)
        if metrics is None:
            raise UsageError("the plan compares tokens by output sensitivity, and nothing is known of it here")
        set_metrics(model, metrics)


def schedule_text(schedule: Sequence[int]) -> str:
    """Pairs of tokens that blocks merge, in a few words."""
    low, high = min(schedule), max(schedule)
    pairs = sum(schedule)
    return f"{pairs} pair{'s' * (pairs != 1)} of tokens, {low if low == high else f'{low} to {high}'} per block"


def merge_schedule(model: nn.Module, merge_tokens: int | Sequence[int]) -> tuple[int, ...]:
    """Pairs of tokens to merge in each block: one number for all blocks, or one for each.

    Returns:
        one number for each block, half of the model's patches at most; empty where nothing would be merged.

    Raises:
        UsageError: negative numbers, a list of another length, or a model whose tokens cannot be merged.
    """
    numbers = [merge_tokens] if isinstance(merge_tokens, int) else list(merge_tokens)
    if any(isinstance(r, bool) or not isinstance(r, int) or r < 0 for r in numbers) or not numbers:
        raise UsageError(f"`merge_tokens` takes a number of 0 or more, or one for each block, got {merge_tokens!r}")
    if not any(numbers):
        return ()
    depth = len(plain_trunk(model)[0])
    if len(numbers) not in (1, depth):
        raise UsageError(f"`merge_tokens`: {len(numbers)} numbers were given for the {depth} blocks of this model")
    if (patches := _own_patches(model)) is not None:
        numbers = [min(r, patches // 2) for r in numbers]
    schedule = tuple(numbers) if len(numbers) == depth else (numbers[0],) * depth
    return schedule if any(schedule) else ()


def given_schedule(model: nn.Module, merge_tokens: MergeTokens | None) -> tuple[int, ...]:
    """The schedule that numbers stand for; empty where there are none, or a budget decides.

    Raises:
        UsageError: as `merge_schedule`.
    """
    return () if merge_tokens is None or isinstance(merge_tokens, str) else merge_schedule(model, merge_tokens)


def spread(pairs: int, depth: int) -> tuple[int, ...]:
    """So many pairs of tokens spread evenly over the blocks, one more in each of the first ones."""
    each, more = divmod(pairs, depth)
    return tuple(each + (block < more) for block in range(depth))


def num_patches(model: nn.Module) -> int:
    """Patch tokens of a plain ViT at its own image size.

    Raises:
        UsageError: it has none of its own.
    """
    found = _own_patches(model)
    if found is None:
        raise UsageError("tokens cannot be merged by plan: this model has no number of patches of its own")
    return found


def _own_patches(model: nn.Module) -> int | None:
    found = getattr(model.get_submodule("patch_embed"), "num_patches", None)
    return found if isinstance(found, int) else None


def token_metrics(known: OutputSensitivity) -> list[Tensor] | None:
    """What tokens of each block of a plain ViT are compared through, `(dim, METRIC_RANK or dim)` each.

    With `G` what errors of the tokens between attention and FFN do to the output, the columns are the eigenvectors of
    its largest eigenvalues, each times the root of its own: `|(a - b) metric|^2` is about `(a - b) G (a - b)^T`.

    Returns:
        None where nothing does anything to the output.
    """
    names = [f"blocks.{name}.attn" for name, _ in plain_trunk(known.original)[0].named_children()]
    found = known.of(inspect(known.original).sites)  # all in one pass: surgery asks for the others
    if found is None or not all(name in found.metric for name in names):
        return None
    metrics = [_largest(found.metric[name]) for name in names]
    processes_of(known.images).same(metrics)
    return metrics


def _largest(metric: Tensor) -> Tensor:
    size = metric.shape[0]
    values, vectors = torch.linalg.eigh(metric * (size / metric.trace().clamp_min(1e-300)))
    rank = min(size, METRIC_RANK)
    return (vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()).float()


@torch.no_grad()
def set_metrics(model: nn.Module, metrics: Sequence[Tensor]) -> None:
    """Give the blocks that compare tokens by output sensitivity their metrics, in place."""
    for block, metric in zip(plain_trunk(model)[0], metrics, strict=True):
        if isinstance(block, MergingBlock) and block.metric is not None:
            block.metric.copy_(metric)


def install_merging(model: nn.Module, schedule: Sequence[int], by: MergeBy = "tokens") -> None:
    """Give the blocks of `model` their numbers of pairs to merge, in place; names of tensors stay as they are.

    Args:
        by: what tokens are compared by; "sensitivity" adds a buffer to the blocks that merge, which `set_metrics`
            fills where they are new.

    Raises:
        UsageError: as `merge_schedule`.
    """
    blocks, num_prefix_tokens = plain_trunk(model)
    if len(schedule) != len(blocks):
        raise UsageError(f"the plan merges tokens in {len(schedule)} blocks, the model has {len(blocks)}")
    merging = MergingBlocks()
    for (name, block), r in zip(blocks.named_children(), schedule, strict=True):
        if not isinstance(block, MergingBlock):
            parts = {part: block.get_submodule(part) for part in PARTS}
            block = MergingBlock(parts, num_prefix_tokens).train(block.training)
        block.merge(r, by, int(model.embed_dim))  # type: ignore[arg-type]
        merging.add_module(name, block)
    model.blocks = merging.train(blocks.training)


def stop_merging(model: nn.Module, *, for_good: bool = False) -> None:
    """Set all numbers to zero, in place: the model computes what it does without merging.

    Args:
        for_good: what tokens were compared through goes too; else it stays for `install_merging`.
    """
    for module in model.modules():
        if isinstance(module, MergingBlock):
            module.r = 0
            module.metric = None if for_good else module.metric
