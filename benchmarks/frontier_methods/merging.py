"""Token merging with nothing else: as in ToMe (arXiv 2210.09461), and as `convert --merge-tokens` matches tokens."""

from __future__ import annotations

import copy

from torch import nn

from vitcompact.data import from_tensor
from vitcompact.operators.merge import install_merging, num_patches, set_metrics, spread
from vitcompact.planning.merging import best_matching
from vitcompact.plans.schema import MergeBy, Plan

from .common import Calibration, known_of, macs_of, nearest


def merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The original with tokens merged evenly over its blocks, by their keys; needs no calibration."""
    return _merged(model, _schedule(model, target, "keys"), "keys")


def merge_own(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same by the tokens themselves, or weighted by output sensitivity where less is lost on the images."""
    known = known_of(copy.deepcopy(model).requires_grad_(False), calibration)
    schedule = _schedule(model, target, "tokens")
    found = best_matching(model, from_tensor(calibration.images), schedule, known)
    merging = _merged(model, schedule, found.by)
    if found.metrics is not None:
        set_metrics(merging, found.metrics)
    return merging


def _schedule(model: nn.Module, target: float, by: MergeBy) -> tuple[int, ...]:
    """Pairs of tokens of each block, as even as it comes."""
    merging = copy.deepcopy(model)
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]

    def macs(pairs: int) -> int:
        install_merging(merging, spread(pairs, depth), by)
        return macs_of(merging)

    return spread(nearest(macs, range(num_patches(model)), macs_of(model), target), depth)


def _merged(model: nn.Module, schedule: tuple[int, ...], by: MergeBy) -> nn.Module:
    merging = copy.deepcopy(model)
    install_merging(merging, schedule, by)
    merging.vitcompact_plan = Plan((), form="folded", merge_tokens=schedule, merge_by=by)  # type: ignore[assignment]
    return merging
