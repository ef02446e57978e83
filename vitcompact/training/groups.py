"""Parameter groups: what decays, how large the steps are, and what starts silent and needs a rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.branches import BranchedLinear, TokenBatchNorm
from vitcompact.training.muon import in_native_precision
from vitcompact.training.options import ResolvedOptions
from vitcompact.training.scales import weight_scale


def silent_groups(model: nn.Module, scales: Mapping[str, float]) -> list[tuple[list[nn.Parameter], float]]:
    """What starts silent, with its natural size.

    Scale and bias of a branch's BatchNorm are in units of the layer's output (`scales` by module path), the alpha
    of hallucinated heads is around one.
    """
    groups = []
    for name, module in model.named_modules():
        if isinstance(module, BranchedLinear):
            norms = [part for part in module.modules() if isinstance(part, TokenBatchNorm)]
            groups.append(([p for norm in norms for p in norm.parameters()], scales.get(name, 1.0)))
    alphas = [m.alpha for m in model.modules() if isinstance(m, CompactAttention) and m.alpha is not None]
    groups.append((alphas, 1.0))
    return [(parameters, scale) for parameters, scale in groups if parameters]


def parameter_groups(model: nn.Module, options: ResolvedOptions, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """timm's groups with and without decay, divided by `weight_scale`, and those of `silent_groups`.

    A group's `lr_scale` is what timm's schedulers multiply the learning rate by. Vectors and learned tokens keep 1.
    """
    excluded: set[str] = getattr(model, "no_weight_decay", set)()
    special = silent_groups(model, scales)
    ids = {id(parameter) for parameters, _ in special for parameter in parameters}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    # A decay is given so that timm tells matrices from the rest; the one of the options replaces it.
    for group in param_groups_weight_decay(model, 1.0, no_weight_decay_list=excluded):
        for parameter in group["params"]:
            if id(parameter) not in ids:
                scale = weight_scale(parameter) if group["weight_decay"] else 1.0
                decay = group["weight_decay"] * options.weight_decay
                groups.setdefault((decay, scale), []).append(parameter)
    result: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]
    ratio = options.branch_lr / options.lr
    return result + [{"params": parameters, "weight_decay": 0.0, "lr_scale": ratio * s} for parameters, s in special]


def make_optimizer(model: nn.Module, options: ResolvedOptions, scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """The timm optimizer `options.opt` over `parameter_groups`.

    torch's fused kernel of Adam and AdamW is asked for: on CPUs it is several times as fast as the loop over tensors.

    Raises:
        UsageError: timm cannot make this optimizer here.
    """
    fused = {"fused": True} if options.opt in ("adam", "adamw") else {}
    groups = parameter_groups(model, options, scales)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=options.opt, lr=options.lr, **fused)
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"`opt='{options.opt}'` cannot be used here: {error}") from error
    return in_native_precision(optimizer, next(model.parameters()).device) if "muon" in options.opt else optimizer
