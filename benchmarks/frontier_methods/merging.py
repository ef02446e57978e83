"""Token merging (ToMe, arXiv 2210.09461) with nothing else, and on top of a converted model."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

from torch import nn

from vitcompact.analysis.latency import relative_latency
from vitcompact.data import resolve_input
from vitcompact.operators.merge import install_merging
from vitcompact.plan.schema import Plan

from .common import Calibration, UnreachableError, macs_of, nearest

TIMED_BATCH = 8
TIMED_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Pairs merged in all blocks together, as shares of the patches, at which merging is timed."""


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

    return _merging(model, nearest(macs, range(tokens), macs_of(original), target))


def merging_to_time(original: nn.Module, model: nn.Module, target: float, calibration: Calibration) -> nn.Module:
    """A copy of `model` with as many tokens merged as would bring the original to the target share of its time.

    That is measured on the original at a few numbers of pairs and read off between them: timing every model with every
    number takes too long, and what counts in the end is the measured speed.

    Raises:
        UnreachableError: merging does not save as much.
    """
    if "merging" not in calibration.measured:
        calibration.measured["merging"] = _times(original)
    for (fewer, slow), (more, fast) in pairwise(calibration.measured["merging"]):
        if fast <= target:
            share = (slow - target) / (slow - fast) if slow > target else 0.0
            return _merging(copy.deepcopy(model), round(fewer + share * (more - fewer)))
    raise UnreachableError(f"merging tokens does not bring the time to {target:.2f}")


def _times(original: nn.Module) -> list[tuple[int, float]]:
    """Time with so many pairs merged over that without, by number of pairs."""
    tokens = int(original.patch_embed.num_patches)  # type: ignore[union-attr, arg-type]
    ratio = relative_latency(original, resolve_input(original).input_size, TIMED_BATCH)
    numbers = [round(share * tokens) for share in TIMED_SHARES]
    return [(0, 1.0), *((pairs, ratio(_merging(copy.deepcopy(original), pairs))) for pairs in numbers)]


def _merging(model: nn.Module, pairs: int) -> nn.Module:
    """`model` itself, merging so many pairs evenly over its blocks, as its plan says too."""
    schedule = _evenly(pairs, len(model.get_submodule("blocks")))  # type: ignore[arg-type]
    install_merging(model, schedule)
    plan = getattr(model, "vitcompact_plan", None) or Plan((), form="folded")
    model.vitcompact_plan = replace(plan, merge_tokens=schedule)  # type: ignore[assignment]
    return model


def _evenly(pairs: int, depth: int) -> tuple[int, ...]:
    """The same number for every block, one more in the first ones."""
    each, more = divmod(pairs, depth)
    return tuple(each + (block < more) for block in range(depth))
