"""Parameter groups: what decays, and what starts silent and needs a learning rate of its own."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.train.options import TrainOptions


def silent_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scale and bias of the branches' BatchNorm, and the alpha of hallucinated heads, in module order."""
    found: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, TokenBatchNorm):
            found += list(module.parameters(recurse=False))
        elif isinstance(module, CompactAttention) and module.alpha is not None:
            found.append(module.alpha)
    return [parameter for parameter in found if parameter.requires_grad]


def parameter_groups(model: nn.Module, options: TrainOptions) -> list[dict[str, Any]]:
    """timm's groups with and without decay, and one for `silent_parameters` whose `lr_scale` schedulers apply."""
    excluded: set[str] = getattr(model, "no_weight_decay", set)()
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, options.weight_decay, no_weight_decay_list=excluded)
    silent = silent_parameters(model)
    ids = {id(parameter) for parameter in silent}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
    if silent:
        groups.append({"params": silent, "weight_decay": 0.0, "lr_scale": options.branch_lr / options.lr})
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The timm optimizer `options.opt` over `parameter_groups`.

    torch's fused kernel of Adam and AdamW is asked for: on CPUs it is several times as fast as the loop over tensors.

    Raises:
        UsageError: timm cannot make this optimizer here.
    """
    fused = {"fused": True} if options.opt in ("adam", "adamw") else {}
    groups = parameter_groups(model, options)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=options.opt, lr=options.lr, **fused)
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--opt {options.opt} cannot be used here: {error}") from error
    return optimizer
