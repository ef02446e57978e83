"""Token merging with nothing else: as in ToMe (arXiv 2210.09461), and as `fold --merge-tokens` matches tokens."""

from __future__ import annotations

import copy

from torch import nn

from vitcompact.operators.merge import install_merging, num_patches, spread
from vitcompact.plans.schema import MergeBy, Plan

from .common import Calibration, macs_of, nearest


def merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The original with tokens merged evenly over its blocks, by their keys; needs no calibration."""
    return _merged(model, target, "keys")


def merge_own(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same by the tokens themselves."""
    return _merged(model, target, "tokens")


def _merged(model: nn.Module, target: float, by: MergeBy) -> nn.Module:
    merging = copy.deepcopy(model)
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]

    def macs(pairs: int) -> int:
        install_merging(merging, spread(pairs, depth), by)
        return macs_of(merging)

    schedule = spread(nearest(macs, range(num_patches(model)), macs_of(model), target), depth)
    install_merging(merging, schedule, by)
    merging.vitcompact_plan = Plan((), form="folded", merge_tokens=schedule, merge_by=by)  # type: ignore[assignment]
    return merging
