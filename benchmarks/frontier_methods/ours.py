"""vitcompact: the paper's pair and the global budget, with and without reconstruction and token merging."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

import vitcompact
from vitcompact.analysis.budget import plan_measured, timed
from vitcompact.analysis.harms import measure_harms
from vitcompact.data.batches import from_tensor
from vitcompact.plan.request import Budget
from vitcompact.plan.schema import Plan

from .common import Calibration
from .merging import merging_to
from .naive import shares

SHARES = (0.25, 0.5, 0.75, 0.9)
"""How much of the saving token merging may take."""


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
    return _budget(model, calibration, target)


def budget_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, then block-wise reconstruction."""
    return _budget(model, calibration, target, reconstruct=calibration.reconstruct_steps)


def budget_latency(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """A budget of time instead of MACs, closed form alone: `target` is the share of the original's time to keep."""
    return _budget(model, calibration, target, unit="latency")


def budget_latency_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, then block-wise reconstruction."""
    return _budget(model, calibration, target, unit="latency", reconstruct=calibration.reconstruct_steps)


def budget_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """Part of the saving from the budget, the rest by merging tokens; the split is chosen on calibration images."""
    return _split(model, calibration, target)[1]


def budget_reconstruct_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, with reconstruction before tokens are merged; the split is the one chosen without."""
    share = _split(model, calibration, target)[0]
    compact = _budget(model, calibration, target ** (1 - share), reconstruct=calibration.reconstruct_steps)
    return merging_to(model, compact, target)


def _split(model: nn.Module, calibration: Calibration, target: float) -> tuple[float, nn.Module]:
    """The share of the saving (as a power of the target) that merging takes, and the closed-form model with it.

    Judged by likeness of the outputs to the original's, on the images that `convert` holds out of its batches of 64.
    """
    chosen = torch.arange(len(calibration.images)) % 64 >= 56
    images = calibration.images[chosen] if chosen.any() else calibration.images
    candidates = []
    for share in SHARES:
        merged = merging_to(model, _budget(model, calibration, target ** (1 - share)), target).eval()
        with torch.no_grad():
            likeness = F.cosine_similarity(merged(images).flatten(1), model(images).flatten(1)).mean()
        candidates.append((float(likeness), share, merged))
    _, share, merged = max(candidates, key=lambda candidate: candidate[:2])
    return share, merged


def _pair(model: nn.Module, calibration: Calibration, target: float, **more: Any) -> nn.Module:
    ratio, rank_ratio = shares(model, target)
    return vitcompact.convert(
        model, ratio=ratio, rank_ratio=rank_ratio, images=calibration.images, seed=calibration.seed, **more
    )


def _budget(
    model: nn.Module, calibration: Calibration, target: float, unit: Literal["macs", "latency"] = "macs", **more: Any
) -> nn.Module:
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
