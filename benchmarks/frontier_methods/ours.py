"""vitcompact: the paper's pair and the global budget, with and without reconstruction and token merging."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import vitcompact
from vitcompact.analysis.budget import plan_measured, timed
from vitcompact.analysis.harms import measure_harms
from vitcompact.data.batches import from_tensor
from vitcompact.plan.request import Budget, Unit
from vitcompact.plan.schema import Plan

from .common import Calibration, UnreachableError
from .merging import merging_to, merging_to_time
from .naive import shares

LEVELS = (1.0, 0.95, 0.9, 0.8, 0.66)
"""What a budget may leave before tokens are merged; 1 is merging alone."""


def pair(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """Hallucinated heads and factorized FFNs, equal shares of both: one half each at the paper's -20.8 %."""
    return _pair(model, calibration, target)


def pair_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, then block-wise reconstruction."""
    return _pair(model, calibration, target, reconstruct=calibration.reconstruct_steps)


def pair_filters_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, with filters of the hallucinated heads' own values (`--terms identity,conv`)."""
    terms = ("identity", "conv")
    return _pair(model, calibration, target, reconstruct=calibration.reconstruct_steps, terms=terms)


def budget(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """All operators under one global budget, closed form alone."""
    return _closed_form(model, calibration, target, "macs")


def budget_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, then block-wise reconstruction."""
    return _budget(model, calibration, target, reconstruct=calibration.reconstruct_steps)


def budget_latency(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """A budget of time instead of MACs, closed form alone: `target` is the share of the original's time to keep."""
    return _closed_form(model, calibration, target, "latency")


def budget_latency_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, then block-wise reconstruction."""
    return _budget(model, calibration, target, unit="latency", reconstruct=calibration.reconstruct_steps)


def budget_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """Part of the saving from the budget, the rest by merging tokens; the split is chosen on calibration images."""
    return _split(model, calibration, target, "macs")[1]


def budget_reconstruct_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, with reconstruction before tokens are merged; the split is the one chosen without."""
    level = _split(model, calibration, target, "macs")[0]
    compact = model
    if level < 1:
        compact = _budget(model, calibration, level, reconstruct=calibration.reconstruct_steps)
    return merging_to(model, compact, target)


def budget_latency_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """Part of the saved time from the budget, the rest by merging tokens; closed form alone."""
    return _split(model, calibration, target, "latency")[1]


def _split(model: nn.Module, calibration: Calibration, target: float, unit: Unit) -> tuple[float, nn.Module]:
    """What the budget leaves before tokens are merged, and the closed-form model with merging.

    Judged by likeness of the outputs to the original's, on the images that `convert` holds out of its batches of 64.
    """
    chosen = torch.arange(len(calibration.images)) % 64 >= 56
    images = calibration.images[chosen] if chosen.any() else calibration.images
    candidates = []
    for level in LEVELS:
        if level <= target:
            continue
        compact = model if level == 1 else _closed_form(model, calibration, level, unit)
        try:
            if unit == "latency":
                merged = merging_to_time(model, compact, target / level, calibration)
            else:
                merged = merging_to(model, compact, target)
        except UnreachableError:
            continue
        with torch.no_grad():
            likeness = F.cosine_similarity(merged.eval()(images).flatten(1), model(images).flatten(1)).mean()
        candidates.append((float(likeness), level, merged))
    if not candidates:
        raise UnreachableError(f"no split between a budget and merging comes to {target:.2f}")
    _, level, merged = max(candidates, key=lambda candidate: candidate[:2])
    return level, merged


def _closed_form(model: nn.Module, calibration: Calibration, level: float, unit: Unit) -> nn.Module:
    """A budget's model, made once for all methods and targets that go on from it; not to be changed in place."""
    known = calibration.measured
    if (unit, level) not in known:
        known[unit, level] = _budget(model, calibration, level, unit)
    made: nn.Module = known[unit, level]
    return made


def _pair(model: nn.Module, calibration: Calibration, target: float, **more: Any) -> nn.Module:
    ratio, rank_ratio = shares(model, target)
    return vitcompact.convert(
        model, ratio=ratio, rank_ratio=rank_ratio, images=calibration.images, seed=calibration.seed, **more
    )


def _budget(model: nn.Module, calibration: Calibration, target: float, unit: Unit = "macs", **more: Any) -> nn.Module:
    """`convert` with `--target-macs` or `--target-latency`, its layers measured once for all targets."""
    plan = _plan(model, calibration, Budget(unit, target))
    return vitcompact.convert(model, plan=plan, images=calibration.images, seed=calibration.seed, **more)


def _plan(model: nn.Module, calibration: Calibration, budget: Budget) -> Plan:
    original, measured = copy.deepcopy(model).requires_grad_(False), calibration.measured
    if "harms" not in measured:
        measured["harms"] = measure_harms(original, from_tensor(calibration.images))
    if budget.unit == "latency":
        measured["harms"] = timed(original, measured["harms"])
    return plan_measured(original, measured["harms"], budget).plan
