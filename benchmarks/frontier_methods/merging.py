"""Token merging (ToMe, arXiv 2210.09461) with nothing else."""

from __future__ import annotations

import copy

from torch import nn

from vitcompact.operators.merge import install_merging, num_patches, spread
from vitcompact.plans.schema import Plan

from .common import Calibration, macs_of, nearest


def merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The original with tokens merged evenly over its blocks; needs no calibration."""
    merging = copy.deepcopy(model)
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]

    def macs(pairs: int) -> int:
        install_merging(merging, spread(pairs, depth))
        return macs_of(merging)

    schedule = spread(nearest(macs, range(num_patches(model)), macs_of(model), target), depth)
    install_merging(merging, schedule)
    merging.vitcompact_plan = Plan((), form="folded", merge_tokens=schedule)  # type: ignore[assignment]
    return merging
