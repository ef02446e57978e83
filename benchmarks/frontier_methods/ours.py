"""vitcompact: the paper's pair and the global budget, with and without reconstruction and token merging."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

import vitcompact
from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data.batches import from_tensor
from vitcompact.planning.candidates import measure_losses
from vitcompact.planning.planner import offered_merging, plan_measured, timed
from vitcompact.planning.request import Budget, MergeTokens, Unit
from vitcompact.plans.schema import Plan

from .common import Calibration
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


def budget_latency_merge(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """A budget of time that merging tokens shares, closed form alone."""
    return _budget(model, calibration, target, "latency", merge_tokens="auto")


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
    **more: Any,
) -> nn.Module:
    """`convert` with `--target-macs` or `--target-latency`, its layers measured once for all targets."""
    plan = _plan(model, calibration, Budget(unit, target, merge_tokens=merge_tokens))
    return vitcompact.convert(model, plan=plan, images=calibration.images, seed=calibration.seed, **more)


def _plan(model: nn.Module, calibration: Calibration, budget: Budget) -> Plan:
    original, measured = copy.deepcopy(model).requires_grad_(False), calibration.measured
    images = from_tensor(calibration.images)
    if "losses" not in measured:
        measured["losses"] = measure_losses(original, images)
    if budget.unit == "latency":
        measured["losses"] = timed(original, measured["losses"])
    if "known" not in measured:
        measured["known"] = OutputSensitivity(original, images)
    offered = offered_merging(original, images, budget, known=measured["known"])
    return plan_measured(original, measured["losses"], budget, offered).plan
