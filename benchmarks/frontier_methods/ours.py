"""vitcompact: the paper's pair and the global budget, with and without reconstruction and token merging."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

import vitcompact
from vitcompact.data.batches import from_tensor
from vitcompact.options.selection import Keep, MergeTokens
from vitcompact.planning.candidates import measure_losses
from vitcompact.planning.planner import offered_merging, plan_measured, timed
from vitcompact.planning.request import Budget, Unit
from vitcompact.plans.schema import Plan

from .common import Calibration, known_of
from .naive import shares


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
    return _budget(model, calibration, target, "latency")


def budget_latency_reconstruct(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, then block-wise reconstruction."""
    return _budget(model, calibration, target, unit="latency", reconstruct=calibration.reconstruct_steps)


def budget_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """A budget of MACs that merging tokens shares (`--merge-tokens auto`), closed form alone."""
    return _budget(model, calibration, target, merge_tokens="auto")


def budget_reconstruct_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same, with block-wise reconstruction."""
    return _budget(model, calibration, target, merge_tokens="auto", reconstruct=calibration.reconstruct_steps)


def budget_merge_cls(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """A budget of MACs that merging shares, where only the class token counts (`--keep cls`), closed form alone."""
    return _budget(model, calibration, target, merge_tokens="auto", keep="cls")


def budget_latency_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """A budget of time that merging tokens shares, closed form alone."""
    return _budget(model, calibration, target, "latency", merge_tokens="auto")


def budget_latency_merge_cls(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same where only the class token counts (`--keep cls`)."""
    return _budget(model, calibration, target, "latency", merge_tokens="auto", keep="cls")


def _pair(model: nn.Module, calibration: Calibration, target: float, **more: Any) -> nn.Module:
    ratio, rank_ratio = shares(model, target)
    return vitcompact.convert(
        model, ratio=ratio, rank_ratio=rank_ratio, images=calibration.images, seed=calibration.seed, **more
    )


def _budget(
    model: nn.Module,
    calibration: Calibration,
    target: float,
    unit: Unit = "macs",
    merge_tokens: MergeTokens | None = None,
    keep: Keep = "both",
    **more: Any,
) -> nn.Module:
    """`convert` with `--target-macs` or `--target-latency`, its layers measured once for all targets."""
    plan = _plan(model, calibration, Budget(unit, target, merge_tokens=merge_tokens, keep=keep))
    return vitcompact.convert(model, plan=plan, images=calibration.images, keep=keep, seed=calibration.seed, **more)


def _plan(model: nn.Module, calibration: Calibration, budget: Budget) -> Plan:
    original, measured, keep = copy.deepcopy(model).requires_grad_(False), calibration.measured, budget.keep
    images = from_tensor(calibration.images)
    if ("losses", keep) not in measured:
        measured["losses", keep] = measure_losses(original, images, keep=keep)
    if budget.unit == "latency":
        measured["losses", keep] = timed(original, measured["losses", keep])
    known = known_of(original, calibration, keep)
    offered = offered_merging(original, images, budget, known=known)
    return plan_measured(original, measured["losses", keep], budget, offered).plan
