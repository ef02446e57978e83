"""Token merging (ToMe, arXiv 2210.09461) with nothing else, and on top of a converted model."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from vitcompact.operators.merge import install_merging
from vitcompact.plan.schema import Plan

from .common import Calibration, macs_of, nearest


def merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The original with tokens merged evenly over its blocks; needs no calibration."""
    return merging_to(model, model, target)


def merging_to(original: nn.Module, model: nn.Module, target: float) -> nn.Module:
    """A copy of `model` with as many tokens merged as brings it to the target share of the original's MACs."""
    model = copy.deepcopy(model)
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    tokens = int(model.patch_embed.num_patches)  # type: ignore[union-attr, arg-type]

    def macs(pairs: int) -> int:
        install_merging(model, _evenly(pairs, depth))
        return macs_of(model)

    pairs = nearest(macs, range(tokens), macs_of(original), target)
    schedule = _evenly(pairs, depth)
    install_merging(model, schedule)
    plan = getattr(model, "vitcompact_plan", None) or Plan((), form="folded")
    model.vitcompact_plan = replace(plan, merge_tokens=schedule)  # type: ignore[assignment]
    return model


def _evenly(pairs: int, depth: int) -> tuple[int, ...]:
    """The same number for every block, one more in the first ones."""
    each, more = divmod(pairs, depth)
    return tuple(each + (block < more) for block in range(depth))
