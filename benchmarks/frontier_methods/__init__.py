"""The methods of the frontier benchmark: each takes a model, calibration images and a target, and gives a module.

`target` is the share of the original's MACs to keep (of `budget-latency...`: of its time); a method comes as close as
its steps allow. Every module can be trained as it is; ours are in training form and are folded before measuring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from . import diffrate, grail, heads, merging, naive, ours, torch_pruning, uniform, variance
from .common import Calibration, UnreachableError

__all__ = ["METHODS", "Calibration", "Method", "UnreachableError"]


@dataclass(frozen=True)
class Method:
    """One method: `label` as tables and legends have it, `own` for those of this project."""

    label: str
    run: Callable[[nn.Module, Calibration, float], nn.Module]
    own: bool = False


METHODS: dict[str, Method] = {
    "pair": Method("vitcompact, the paper's pair", ours.pair, own=True),
    "pair-reconstruct": Method("vitcompact, pair + reconstruct", ours.pair_reconstruct, own=True),
    "pair-filters-reconstruct": Method(
        "vitcompact, pair + filters + reconstruct", ours.pair_filters_reconstruct, own=True
    ),
    "budget": Method("vitcompact, budget", ours.budget, own=True),
    "budget-reconstruct": Method("vitcompact, budget + reconstruct", ours.budget_reconstruct, own=True),
    "budget-latency": Method("vitcompact, budget of time", ours.budget_latency, own=True),
    "budget-latency-reconstruct": Method(
        "vitcompact, budget of time + reconstruct", ours.budget_latency_reconstruct, own=True
    ),
    "budget-merge": Method("vitcompact, budget + token merging", ours.budget_merge, own=True),
    "budget-reconstruct-merge": Method(
        "vitcompact, budget + reconstruct + merging", ours.budget_reconstruct_merge, own=True
    ),
    "budget-merge-cls": Method("vitcompact, budget + merging, --keep cls", ours.budget_merge_cls, own=True),
    "budget-latency-merge": Method("vitcompact, budget of time + merging", ours.budget_latency_merge, own=True),
    "budget-latency-merge-cls": Method(
        "vitcompact, budget of time + merging, --keep cls", ours.budget_latency_merge_cls, own=True
    ),
    "uniform": Method("the same operators, uniform", uniform.uniform),
    "svd": Method("plain SVD of FFN outputs", naive.plain_svd),
    "copy": Method("copied heads", naive.copied_heads),
    "svd-copy": Method("copied heads + plain SVD", naive.copied_heads_and_svd),
    "heads": Method("head removal (Michel et al.)", heads.remove_heads),
    "torch-pruning": Method("Torch-Pruning (Taylor, bottleneck)", torch_pruning.prune),
    "variance": Method("variance-based pruning", variance.prune),
    "grail-magnitude": Method("GRAIL after magnitude", grail.magnitude),
    "grail-wanda": Method("GRAIL after Wanda", grail.wanda),
    "grail-gram": Method("GRAIL after activation energy", grail.energy),
    "diffrate": Method("DiffRate", diffrate.search),
    "merge": Method("token merging alone (ToMe)", merging.merge),
    "merge-own": Method("vitcompact, token merging alone", merging.merge_own, own=True),
}
